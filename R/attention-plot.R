#' Plot attention maps
#'
#' @description
#' Draws an `attention_scores` object with ggplot2:
#'
#' * `"heads"`: one panel a head and layer, queries from top to bottom, keys from left
#'   to right;
#' * `"mean"`: the mean over heads, one panel a layer;
#' * `"text"`: one query's weights as shades behind the words, one panel a head;
#' * `"entropy"`: how widely each head looks: 0 bits for one key, log2(S) for all.
#'
#' Choose layers and heads with `[` first: `plot(scores[1, 2])` is one head.
#'
#' @details
#' All scales run from white to dark blue, light to dark in print as on the screen, and
#' do not depend on telling red from green.
#'
#' @param x,object An [attention_scores()] object, or one of [attention_rollout()] or
#'   [head_importance()].
#' @param type Which picture.
#' @param ... Not used.
#' @param query For `"text"`: the number of the query position; the last by default.
#' @param sample The number of the sample in the batch.
#' @param layer For a rollout: which layer; the last by default.
#'
#' @returns `autoplot()` a ggplot object, `plot()` the same invisibly after drawing it.
#' @export
#' @examplesIf kerasattention:::can_run_examples() && requireNamespace("ggplot2", quietly = TRUE)
#' keras <- reticulate::import("keras")
#' input <- keras$Input(reticulate::tuple(6L, 16L))
#' model <- keras$Model(input, input |> layer_multi_head_attention(2, 8))
#' x <- array(rnorm(6 * 16), c(1, 6, 16))
#' scores <- attention_scores(model, x, tokens = c("the", "cat", "sat", "on", "the", "mat"))
#' plot(scores)
#' plot(scores, type = "text", query = 2)
#' plot(scores, type = "entropy")
plot.attention_scores <- function(
  x,
  type = c("heads", "mean", "text", "entropy"),
  ...,
  query = NULL,
  sample = 1
) {
  draw(autoplot_scores(x, type, ..., query = query, sample = sample))
}

draw <- function(plot) {
  print(plot)
  invisible(plot)
}

#' @rdname plot.attention_scores
#' @exportS3Method ggplot2::autoplot
autoplot.attention_scores <- function(
  object,
  type = c("heads", "mean", "text", "entropy"),
  ...,
  query = NULL,
  sample = 1
) {
  autoplot_scores(object, type, ..., query = query, sample = sample)
}

autoplot_scores <- function(
  x,
  type,
  ...,
  query = NULL,
  sample = 1,
  call = caller_env()
) {
  types <- c("heads", "mean", "text", "entropy")
  check_dots(list(...), c("query", "sample"), call = call)
  type <- check_choice(type, types, call = call)
  check_whole_number(sample, min = 1, call = call)
  check_whole_number(query, min = 1, null = TRUE, call = call)
  check_ggplot2(call)
  switch(
    type,
    heads = plot_heads(x[,,,, sample]),
    mean = plot_mean(x[,,,, sample]),
    text = plot_text(x[,,,, sample], query, call),
    entropy = plot_entropy(x)
  )
}

check_ggplot2 <- function(call) {
  if (!requireNamespace("ggplot2", quietly = TRUE)) {
    abort(
      "Plots need the package {.pkg ggplot2}.",
      hint = 'Install it: `install.packages("ggplot2")`.',
      call = call
    )
  }
}

plot_heads <- function(x) {
  frame <- as.data.frame(x)
  frame$head <- factor(
    frame$head,
    unique(frame$head),
    paste("head", unique(frame$head))
  )
  several <- length(x$maps) > 1
  facets <- if (several) {
    ggplot2::facet_grid(ggplot2::vars(.data$layer), ggplot2::vars(.data$head))
  } else {
    ggplot2::facet_wrap(ggplot2::vars(.data$head))
  }
  map_plot(frame, x$tokens) +
    facets +
    ggplot2::labs(
      title = if (several) "Attention of each head" else names(x$maps)
    )
}

plot_mean <- function(x) {
  frame <- as.data.frame(x)
  frame <- stats::aggregate(weight ~ layer + query + key, frame, mean)
  map_plot(frame, x$tokens) +
    ggplot2::facet_wrap(ggplot2::vars(.data$layer)) +
    ggplot2::labs(title = "Attention, mean over heads")
}

# Queries downwards, as in a matrix.
map_plot <- function(frame, tokens) {
  ggplot2::ggplot(
    frame,
    ggplot2::aes(.data$key, .data$query, fill = .data$weight)
  ) +
    ggplot2::geom_raster() +
    token_scale(ggplot2::scale_x_continuous, frame$key, tokens) +
    token_scale(ggplot2::scale_y_reverse, frame$query, tokens) +
    weight_scale("weight") +
    ggplot2::coord_fixed() +
    ggplot2::labs(x = "key", y = "query") +
    map_theme(!is.null(tokens))
}

# As many labels as can be read, all of them up to 40 tokens.
token_scale <- function(scale, positions, tokens) {
  if (is.null(tokens)) {
    return(scale(breaks = whole_breaks, expand = c(0, 0)))
  }
  breaks <- sort(unique(positions))
  step <- ceiling(length(breaks) / 40)
  breaks <- breaks[seq(1, length(breaks), by = step)]
  labels <- tokens[breaks]
  labels[is.na(labels)] <- ""
  scale(breaks = breaks, labels = labels, expand = c(0, 0))
}

# Positions are counted: no label between two of them.
whole_breaks <- function(limits) {
  breaks <- pretty(limits)
  breaks[breaks == trunc(breaks)]
}

weight_scale <- function(name, ...) {
  ggplot2::scale_fill_gradientn(
    colours = c("#ffffff", "#c6dbef", "#6baed6", "#2171b5", "#08306b"),
    limits = c(0, NA),
    name = name,
    ...
  )
}

map_theme <- function(turned) {
  ggplot2::theme_minimal(base_size = 11) +
    ggplot2::theme(
      panel.grid = ggplot2::element_blank(),
      panel.border = ggplot2::element_rect(fill = NA, colour = "grey70"),
      axis.text.x = if (turned) {
        ggplot2::element_text(angle = 90, hjust = 1, vjust = 0.5)
      } else {
        ggplot2::element_text()
      }
    )
}

plot_text <- function(x, query, call) {
  if (is.null(x$tokens)) {
    abort(
      "{.code type = \"text\"} needs the words: the scores have no {.arg tokens}.",
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
  frame <- as.data.frame(x)
  frame <- frame[frame$query == query, ]
  frame$panel <- factor(paste0(frame$layer, ", head ", frame$head))
  frame$panel <- factor(
    frame$panel,
    unique(paste0(frame$layer, ", head ", frame$head))
  )
  frame <- merge(frame, text_layout(x$tokens), by = "key")
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
    ggplot2::labs(
      title = paste0("What \"", x$tokens[[query]], "\" (", query, ") attends")
    ) +
    ggplot2::theme_void(base_size = 11) +
    ggplot2::theme(
      plot.margin = ggplot2::margin(8, 8, 8, 8),
      plot.title = ggplot2::element_text(margin = ggplot2::margin(b = 8)),
      strip.text = ggplot2::element_text(margin = ggplot2::margin(4, 0, 4, 0)),
      legend.key.height = ggplot2::unit(0.8, "lines")
    )
}

# Words in lines of about 40 letters, each as wide as its letters.
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

plot_entropy <- function(x) {
  frame <- summary(x)
  ggplot2::ggplot(
    frame,
    ggplot2::aes(factor(.data$head), .data$layer, fill = .data$entropy)
  ) +
    ggplot2::geom_tile(colour = "white") +
    ggplot2::geom_text(
      ggplot2::aes(
        label = sprintf("%.1f", .data$entropy),
        colour = .data$entropy > max(.data$entropy) / 2
      ),
      size = 3
    ) +
    ggplot2::scale_colour_manual(
      values = c(`FALSE` = "black", `TRUE` = "white"),
      guide = "none"
    ) +
    ggplot2::scale_y_discrete(limits = rev) +
    weight_scale("bits") +
    ggplot2::labs(x = "head", y = NULL, title = "Entropy of attention") +
    map_theme(FALSE)
}
