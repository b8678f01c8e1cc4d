#' Build and train a model over several devices
#'
#' Runs code while a distribution is in force. The model has to be built, compiled and fitted in
#' it.
#'
#' Within the code, `fit()`, `evaluate()` and `predict()` check the model and the batches before
#' Keras changes anything. A model that was built outside is an error, and so are batches that do
#' not divide over the devices, after which Keras has no weights left otherwise. For predictions of
#' any number of rows there is [predict_padded()].
#'
#' @param distribution A distribution: [head_parallel()], or one of Keras such as
#'   `keras$distribution$DataParallel()`.
#' @param code Code, usually in braces. Its assignments are made where it is written.
#'
#' @returns The value of `code`.
#' @export
#' @examplesIf kerasattention:::can_run_on_jax()
#' keras <- reticulate::import("keras")
#' with_distribution(head_parallel(model = 1, batch = 1), {
#'   input <- keras$Input(reticulate::tuple(6L, 16L))
#'   model <- keras$Model(input, input |> layer_multi_head_attention(4, 4))
#' })
#' sharding_report(model)
with_distribution <- function(distribution, code) {
  check_required(distribution)
  check_distribution(distribution)
  check_required(code)
  doing <- "use the distribution"
  context <- call_python("with_distribution", distribution, doing = doing)
  with_python(context$`__enter__`(), doing)
  on.exit(context$`__exit__`(NULL, NULL, NULL))
  result <- withVisible(code)
  if (is_model(result$value)) {
    scope <- python_module()$distribution$scope
    with_python(scope$check_built_inside(result$value, distribution), doing)
  }
  if (result$visible) result$value else invisible(result$value)
}
