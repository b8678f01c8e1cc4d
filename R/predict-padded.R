#' Predict any number of rows on several devices
#'
#' `model$predict()` in [with_distribution()] needs a number of rows that the devices divide.
#' `predict_padded()` repeats the last row as often as needed, and leaves the repeated rows out of
#' the result.
#'
#' @param model A model that was built in [with_distribution()]. Call `predict_padded()` inside it
#'   too; elsewhere it is `model$predict()`.
#' @param x An array, or a list of arrays for several inputs.
#' @param batch_size The number of rows in a batch, over all devices: a multiple of the number of
#'   parts of a batch. `NULL` is 32, or the next multiple.
#'
#' @returns The predictions, an array or a list of arrays.
#' @export
#' @examplesIf kerasattention:::can_run_on_jax()
#' keras <- reticulate::import("keras")
#' with_distribution(head_parallel(model = 1, batch = 1), {
#'   input <- keras$Input(reticulate::tuple(6L, 16L))
#'   model <- keras$Model(input, input |> layer_multi_head_attention(4, 4))
#'   dim(predict_padded(model, array(rnorm(5 * 6 * 16), c(5, 6, 16))))
#' })
predict_padded <- function(model, x, batch_size = NULL) {
  check_required(model)
  check_model(model)
  check_required(x)
  check_model_input(x)
  check_whole_number(batch_size, min = 1, null = TRUE)
  call_python(
    "predict_padded",
    model,
    as_model_input(x),
    as_int(batch_size),
    doing = "predict"
  )
}
