#' Measure how much each attention head matters
#'
#' The importance of attention heads of Michel et al. (2019,
#' <https://arxiv.org/abs/1905.10650>), from the gradients of the loss.
#'
#' The result of each head h is multiplied by a gate
#' \ifelse{html}{\out{<i>&xi;<sub>h</sub></i>}}{\eqn{\xi_h}{xi_h}}, which is 1. The importance of
#' the head is the mean absolute gradient of the loss with respect to its gate,
#' \ifelse{html}{\out{E<sub><i>x</i></sub> |&part;<i>L</i>(<i>x</i>) / &part;<i>&xi;<sub>h</sub></i>|}}{\eqn{E_x |\partial L(x) / \partial \xi_h|}{E_x |dL(x) / dxi_h|}}.
#'
#' @inheritParams attention_scores
#' @param x,y Inputs, as for [attention_scores()], and targets of the same samples. Several
#'   hundred samples give stable results.
#' @param ... Not used.
#' @param loss A Keras loss, its name or an object; by default the loss that the model was
#'   compiled with. Tokens that the mask of the output masks out have none, as in `fit()`.
#' @param batch_size Number of samples in a batch.
#' @param normalize Whether to divide each layer's importances by their Euclidean norm, as
#'   the paper does, to make layers comparable.
#'
#' @returns A data frame of class `head_importance` with a row for each query head and the
#'   columns `layer`, `head` and `importance`. `plot()` draws it.
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
  check_model_input(x)
  check_input_axes(x, model)
  check_array(y)
  check_loss(loss)
  check_whole_number(batch_size, min = 1)
  check_flag(normalize)
  check_targets(model, x, y, loss)
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

check_loss <- function(loss, arg = caller_arg(loss), call = caller_env()) {
  check_alive(loss, arg = arg, call = call)
  if (
    !is.null(loss) && !is_string(loss) && !is_python(loss) && !is.function(loss)
  ) {
    rule <- "the name of a Keras loss, a loss object, or NULL"
    abort_argument(arg, rule, loss, call = call)
  }
}

# Keras's losses broadcast targets of too few axes over the outputs without a warning. Class
# numbers have one axis less than the outputs, or 1 as the last size.
check_targets <- function(model, x, y, loss, call = caller_env()) {
  targets <- shape_of(y)
  for (input in if (is_plain_list(x)) x else list(x)) {
    samples <- shape_of(input)[1]
    if (differ(samples, targets[1])) {
      abort(
        "{.arg y} must have the same number of samples as {.arg x}, {samples}, not {targets[1]}.",
        arg = "y",
        call = call
      )
    }
  }
  outputs <- end_sizes(model, "output")
  if (length(outputs) < 2 || is.null(targets)) {
    return(invisible())
  }
  last <- length(outputs)
  classes <- takes_classes(loss %||% model$loss) || !differ(outputs[last], 1)
  if (length(targets) == last - 1 && classes) {
    targets <- c(targets, 1L)
  }
  as_classes <- classes && length(targets) == last && !differ(targets[last], 1)
  wrong <- length(targets) != last ||
    any(differs(targets, outputs)[-c(1, if (as_classes) last)])
  if (wrong) {
    rule <- paste(
      "targets of the shape of the model's output,",
      show_shape(outputs)
    )
    abort_argument("y", rule, y, call = call)
  }
}

# Whether a loss may take class numbers as targets. For R functions that is not known: TRUE.
takes_classes <- function(loss) {
  if (is_string(loss)) {
    return(grepl("sparse", loss, ignore.case = TRUE))
  }
  name <- tryCatch(loss$`__name__`, error = function(cnd) python_class(loss))
  !is_python(loss) || grepl("sparse", name, ignore.case = TRUE)
}

differs <- function(a, b) !is.na(a) & !is.na(b) & a != b

#' @rdname plot.attention_scores
#' @export
plot.head_importance <- function(x, ...) draw(autoplot_importance(x, ...))

#' @rdname plot.attention_scores
#' @usage
#' \method{autoplot}{head_importance}(object, ...)
#' @exportS3Method ggplot2::autoplot
autoplot.head_importance <- function(object, ...) {
  autoplot_importance(object, ...)
}

autoplot_importance <- function(x, ..., call = caller_env()) {
  check_dots(list(...), character(), call = call)
  check_ggplot2(call)
  x$layer <- factor(x$layer, unique(x$layer))
  ggplot2::ggplot(x, ggplot2::aes(factor(.data$head), .data$importance)) +
    ggplot2::geom_col(fill = "#2171b5") +
    ggplot2::facet_wrap(ggplot2::vars(.data$layer)) +
    ggplot2::labs(x = "head", y = "importance", title = "Importance of heads") +
    ggplot2::theme_minimal(base_size = 11)
}
