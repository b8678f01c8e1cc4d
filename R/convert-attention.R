#' Replace a model's Keras attention layers
#'
#' Copies a trained model and replaces the Keras attention layers of the copy by ours, with
#' the same weights. With `num_key_value_heads` the key and value heads are merged to fewer,
#' which turns a multi-head model into a grouped-query model (Ainslie et al. 2023,
#' <https://arxiv.org/abs/2305.13245>). Further training, in the paper for 5% of the original
#' steps, then restores the quality.
#'
#' @param model A Functional or Sequential model, which may contain other models. It is not
#'   changed.
#' @param num_key_value_heads `NULL` keeps the heads; or a number that divides the number of
#'   key/value heads of every attention layer. 1 makes multi-query attention.
#' @param method How heads are merged: the `"mean"` of each group, the `"first"` head of each
#'   group, or new `"random"` heads.
#' @param seed A whole number, for `"random"`; by default a number drawn in R, which
#'   [set.seed()] governs.
#'
#' @returns The copy, compiled as `model` is, with a new optimizer.
#' @export
#' @examplesIf kerasattention:::can_run_examples()
#' keras <- reticulate::import("keras")
#' input <- keras$Input(reticulate::tuple(6L, 16L))
#' theirs <- keras$layers$MultiHeadAttention(4L, 4L, name = "attention")
#' model <- keras$Model(input, theirs(input, input))
#'
#' convert_attention(model)$get_layer("attention")
#' convert_attention(model, num_key_value_heads = 2)$get_layer("attention")
convert_attention <- function(
  model,
  num_key_value_heads = NULL,
  method = c("mean", "first", "random"),
  seed = NULL
) {
  check_required(model)
  check_model(model)
  check_whole_number(num_key_value_heads, min = 1, null = TRUE)
  method <- check_choice(method, c("mean", "first", "random"))
  check_whole_number(seed, min = 0, null = TRUE)
  call_python(
    "convert_attention",
    model,
    as_int(num_key_value_heads),
    method,
    as_int(if (method == "random") seed %||% draw_seed() else seed),
    doing = "convert the attention layers"
  )
}
