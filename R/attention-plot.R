#' Plot attention maps
#'
#' @description
#' Draws an `attention_scores` object with ggplot2:
#'
#' * `"heads"`: the map of each head, in a panel for each layer and head, queries from top
#'   to bottom and keys from left to right;
#' * `"mean"`: the mean over heads, in a panel for each layer;
#' * `"text"`: the weights of one query as shades behind the words, in a panel for each
#'   head;
#' * `"entropy"`: the entropy of each head: 0 bits where a query attends to one key,
#'   log2(S) where it attends to all keys equally.
#'
#' To draw some layers or heads, choose them with `[` first: `plot(scores[1, 2])`.
#'
#' @details
#' All color scales run from white to dark blue. They remain readable in grayscale and with
#' color blindness.
#'
#' @param x,object An object made by [attention_scores()], [attention_rollout()] or
#'   [head_importance()].
#' @param type The kind of plot.
#' @param ... Not used.
#' @param query For `"text"`: the number of the query position; by default the last.
#' @param sample The number of the sample in the batch.
#' @param layer For a rollout: the number of the layer; by default the last.
#'
#' @returns `autoplot()` returns a ggplot object; `plot()` draws it and returns it invisibly.
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

#' @rdname plot.attention_scores
#' @usage
#' \method{autoplot}{attention_scores}(
#'   object,
#'   type = c("heads", "mean", "text", "entropy"),
#'   ...,
#'   query = NULL,
#'   sample = 1
#' )
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
  map_plot(frame, axis_labels(x, "key"), axis_labels(x, "query")) +
    facets +
    ggplot2::labs(
      title = if (several) "Attention of each head" else names(x$maps)
    )
}

plot_mean <- function(x) {
  frame <- as.data.frame(x)
  frame <- stats::aggregate(weight ~ layer + query + key, frame, mean)
  map_plot(frame, axis_labels(x, "key"), axis_labels(x, "query")) +
    ggplot2::facet_wrap(ggplot2::vars(.data$layer)) +
    ggplot2::labs(title = "Attention, mean over heads")
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
