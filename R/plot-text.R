plot_text <- function(x, query, call) {
  words <- axis_labels(x, "key")
  if (is.null(words)) {
    abort(
      "{.code type = \"text\"} needs the words: {missing_words(x)}.",
      hint = "Give them: `attention_scores(model, x, tokens = words)`.",
      call = call
    )
  }
  known <- x$index[[1]]$query
  query <- query %||% known[[length(known)]]
  if (!query %in% known) {
    abort_argument(
      "query",
      "one of the query positions in the scores",
      query,
      call = call
    )
  }
  described <- describe_query(axis_labels(x, "query"), query)
  draw_text(text_frame(x, query, words), query) +
    ggplot2::labs(title = paste("What", described, "attends to"))
}

# The weights of one query, with the place of each word.
text_frame <- function(x, query, words) {
  frame <- as.data.frame(x)
  frame <- frame[frame$query == query, ]
  frame$panel <- paste0(frame$layer, ", head ", frame$head)
  frame$panel <- factor(frame$panel, unique(frame$panel))
  merge(frame, text_layout(words), by = "key")
}

draw_text <- function(frame, query) {
  ggplot2::ggplot(frame) +
    ggplot2::geom_tile(
      ggplot2::aes(
        .data$middle,
        .data$line,
        width = .data$width,
        fill = .data$weight
      ),
      height = 0.85
    ) +
    ggplot2::geom_text(
      ggplot2::aes(
        .data$middle,
        .data$line,
        label = .data$token,
        colour = .data$weight > max(.data$weight) / 2,
        fontface = ifelse(.data$key == query, "bold", "plain")
      ),
      size = 3.5
    ) +
    ggplot2::scale_colour_manual(values = c("black", "white"), guide = "none") +
    ggplot2::scale_y_reverse() +
    ggplot2::coord_fixed(ratio = 3) +
    ggplot2::facet_wrap(ggplot2::vars(.data$panel)) +
    weight_scale("weight") +
    ggplot2::theme_void(base_size = 11) +
    ggplot2::theme(
      plot.margin = ggplot2::margin(8, 8, 8, 8),
      plot.title = ggplot2::element_text(margin = ggplot2::margin(b = 8)),
      strip.text = ggplot2::element_text(margin = ggplot2::margin(4, 0, 4, 0)),
      legend.key.height = ggplot2::unit(0.8, "lines")
    )
}

missing_words <- function(x) {
  if (is.null(x$tokens)) {
    return("the scores have no `tokens`")
  }
  without <- !vapply(x$index, has_labels, NA, "key")
  paste0("the tokens are not those of layer \"", names(x)[without][[1]], "\"")
}

describe_query <- function(words, query) {
  if (is.null(words)) {
    paste("query", query)
  } else {
    paste0("\"", words[[query]], "\" (", query, ")")
  }
}

# Arranges words in lines of about 40 letters.
text_layout <- function(tokens, letters = 40) {
  width <- nchar(tokens, "width") + 1.5
  line <- 1
  at <- 0
  middle <- lines <- numeric(length(tokens))
  for (i in seq_along(tokens)) {
    if (at > 0 && at + width[[i]] > letters) {
      line <- line + 1
      at <- 0
    }
    middle[[i]] <- at + width[[i]] / 2
    lines[[i]] <- line
    at <- at + width[[i]]
  }
  data.frame(
    key = seq_along(tokens),
    token = tokens,
    middle = middle,
    line = lines,
    width = width - 0.3
  )
}
