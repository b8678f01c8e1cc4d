#' Attention rollout
#'
#' Estimates how much of each input token arrives at each position after several layers
#' (Abnar and Zuidema 2020, <https://arxiv.org/abs/2005.00928>).
#'
#' The flow of a layer is the
#' mean of its attention A over heads and the residual connection,
#' \ifelse{html}{\out{0.5 <i>A</i> + 0.5 <i>I</i>}}{\eqn{0.5 A + 0.5 I}}; the rollout of a layer
#' is the matrix product of the flows of all layers up to it.
#'
#' @param scores An [attention_scores()] object of self-attention layers, with all
#'   queries and keys.
#' @returns An `attention_rollout` object: `rollout$rollout` is an array (L, B, T, T) of
#'   layers, samples, positions and input tokens, whose rows sum to 1. It has methods
#'   for `plot()`, [ggplot2::autoplot()] and `as.data.frame()`, whose rows have the tokens of
#'   the scores as `query_token` and `key_token`.
#' @export
#' @examplesIf kerasattention:::can_run_examples()
#' keras <- reticulate::import("keras")
#' input <- keras$Input(reticulate::tuple(6L, 16L))
#' output <- input |>
#'   layer_multi_head_attention(2, 8) |>
#'   layer_multi_head_attention(2, 8)
#' model <- keras$Model(input, output)
#' x <- array(rnorm(6 * 16), c(1, 6, 16))
#' rollout <- attention_rollout(attention_scores(model, x))
#' rollout
#' round(rollout$rollout[2, 1, , ], 2)
attention_rollout <- function(scores) {
  check_required(scores)
  if (!is_scores(scores)) {
    abort_argument("scores", "an `attention_scores()` object", scores)
  }
  whole <- vapply(scores$index, is_whole, NA)
  if (!all(whole)) {
    abort(
      "{.arg scores} must hold all queries and keys of self-attention: layer {.val {names(scores$maps)[!whole][[1]]}} does not.",
      hint = "Leave out `queries`, and choose other `layers`.",
      arg = "scores"
    )
  }
  rollout <- call_python(
    "attention_rollout",
    lapply(unname(scores$maps), function(map) reticulate::np_array(map)),
    doing = "compute the rollout"
  )
  structure(
    list(
      rollout = rollout,
      layers = names(scores$maps),
      tokens = rollout_labels(scores)
    ),
    class = "attention_rollout"
  )
}

is_whole <- function(index) {
  index$self_attention && identical(index$query, index$key)
}

# A matrix of the labels of the samples in the scores, or NULL.
rollout_labels <- function(scores) {
  index <- scores$index[[1]]
  if (!is.null(scores$tokens) && index$labelled) {
    scores$tokens[index$sample, index$key, drop = FALSE]
  }
}

#' @export
print.attention_rollout <- function(x, ...) {
  size <- dim(x$rollout)
  cat(sprintf(
    "<attention_rollout> of %d layer%s, %d tokens, %d sample%s\n",
    size[[1]],
    plural(size[[1]]),
    size[[3]],
    size[[2]],
    plural(size[[2]])
  ))
  invisible(x)
}

#' @export
as.data.frame.attention_rollout <- function(x, ...) {
  size <- dim(x$rollout)
  grid <- expand.grid(
    layer = factor(x$layers, unique(x$layers)),
    sample = seq_len(size[[2]]),
    query = seq_len(size[[3]]),
    key = seq_len(size[[4]]),
    KEEP.OUT.ATTRS = FALSE
  )
  frame <- cbind(grid, weight = as.vector(x$rollout))
  if (!is.null(x$tokens)) {
    frame$query_token <- x$tokens[cbind(frame$sample, frame$query)]
    frame$key_token <- x$tokens[cbind(frame$sample, frame$key)]
  }
  frame
}

#' @rdname plot.attention_scores
#' @export
plot.attention_rollout <- function(x, ..., layer = NULL, sample = 1) {
  draw(autoplot_rollout(x, ..., layer = layer, sample = sample))
}

#' @rdname plot.attention_scores
#' @usage
#' \method{autoplot}{attention_rollout}(object, ..., layer = NULL, sample = 1)
#' @exportS3Method ggplot2::autoplot
autoplot.attention_rollout <- function(object, ..., layer = NULL, sample = 1) {
  autoplot_rollout(object, ..., layer = layer, sample = sample)
}

autoplot_rollout <- function(
  x,
  ...,
  layer = NULL,
  sample = 1,
  call = caller_env()
) {
  check_dots(list(...), c("layer", "sample"), call = call)
  count <- dim(x$rollout)[[1]]
  check_whole_number(layer, min = 1, max = count, null = TRUE, call = call)
  check_whole_number(sample, min = 1, max = dim(x$rollout)[[2]], call = call)
  check_ggplot2(call)
  layer <- layer %||% count
  frame <- as.data.frame(x)
  one <- as.integer(frame$layer) == match(x$layers[[layer]], unique(x$layers))
  frame <- frame[one & frame$sample == sample, ]
  tokens <- x$tokens[sample, ]
  map_plot(frame, tokens, tokens) +
    ggplot2::labs(
      x = "input token",
      y = "position",
      title = paste("Attention rollout up to", x$layers[[layer]])
    )
}
