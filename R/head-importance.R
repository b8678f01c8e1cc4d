#' Measure how much each attention head matters
#'
#' The importance of Michel et al. (2019, <https://arxiv.org/abs/1905.10650>): put a
#' gate that stands at 1 on each head's result; a head's importance is the mean size of
#' the loss's slope along its gate, \eqn{E_x |\partial L(x) / \partial \xi_h|}.
#'
#' @inheritParams attention_scores
#' @param x,y Inputs and targets, with as many samples; several hundred give stable
#'   numbers.
#' @param ... Not used.
#' @param loss A loss of Keras by name or object; by default the one the model is
#'   compiled with.
#' @param batch_size Samples at a time.
#' @param normalize Whether to divide each layer's numbers by their Euclidean length, as
#'   the paper does so that layers can be compared.
#'
#' @returns A data frame of class `head_importance` with columns `layer`, `head` and
#'   `importance`, a row per query head. `plot()` draws it.
#' @seealso [prune_heads()].
#' @export
#' @examplesIf kerasattention:::can_run_examples()
#' keras <- reticulate::import("keras")
#' input <- keras$Input(reticulate::tuple(6L, 16L))
#' output <- input |> layer_multi_head_attention(4, 4)
#' model <- keras$Model(input, output)
#' model$compile(loss = "mse")
#' x <- array(rnorm(8 * 6 * 16), c(8, 6, 16))
#'
#' importance <- head_importance(model, x, x)
#' importance
#' smaller <- prune_heads(model, importance = importance, fraction = 0.5)
head_importance <- function(
  model,
  x,
  y,
  ...,
  loss = NULL,
  batch_size = 32,
  normalize = TRUE
) {
  check_dots(list(...), c("loss", "batch_size", "normalize"))
  check_required(model)
  check_required(x)
  check_required(y)
  check_model(model)
  check_array(x)
  check_array(y)
  check_whole_number(batch_size, min = 1)
  check_flag(normalize)
  found <- call_python(
    "head_importance",
    model,
    as_model_input(x),
    as_model_input(y),
    loss = loss,
    batch_size = as_int(batch_size),
    normalize = normalize,
    doing = "measure the importance of heads"
  )
  frame <- data.frame(
    layer = rep(names(found), lengths(found)),
    head = unlist(lapply(found, seq_along), use.names = FALSE),
    importance = unlist(lapply(found, as.vector), use.names = FALSE)
  )
  structure(frame, class = c("head_importance", "data.frame"))
}

#' @rdname plot.attention_scores
#' @export
plot.head_importance <- function(x, ...) draw(autoplot_importance(x, ...))

#' @rdname plot.attention_scores
#' @exportS3Method ggplot2::autoplot
autoplot.head_importance <- function(object, ...) {
  autoplot_importance(object, ...)
}

autoplot_importance <- function(x, ..., call = caller_env()) {
  check_dots(list(...), character(), call)
  check_ggplot2(call)
  x$layer <- factor(x$layer, unique(x$layer))
  ggplot2::ggplot(x, ggplot2::aes(factor(.data$head), .data$importance)) +
    ggplot2::geom_col(fill = "#2171b5") +
    ggplot2::facet_wrap(ggplot2::vars(.data$layer)) +
    ggplot2::labs(x = "head", y = "importance", title = "Importance of heads") +
    ggplot2::theme_minimal(base_size = 11)
}
