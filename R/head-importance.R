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

# Keras's losses spread targets of too few axes over the outputs without a word. Class
# numbers have one axis less than the outputs, or 1 as the last size.
check_targets <- function(model, x, y, loss, call = caller_env()) {
  inputs <- shape_of(x)
  targets <- shape_of(y)
  if (differ(inputs[1], targets[1])) {
    abort(
      "{.arg y} must have as many samples as {.arg x}, {inputs[1]}, not {targets[1]}.",
      arg = "y",
      call = call
    )
  }
  outputs <- output_sizes(model)
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

# The sizes of a model's only output, NULL where there are more or none is known.
output_sizes <- function(model) {
  tryCatch(shape_of(model$output), error = function(cnd) NULL)
}

# Whether a loss may take the numbers of classes; of R functions nothing is known.
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
