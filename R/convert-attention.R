#' Put our attention layers into a model
#'
#' A copy of a trained model in which Keras's attention layers are replaced by ours, all
#' weights kept. With `num_key_value_heads` the key and value heads are merged to fewer, as
#' Ainslie et al. (2023, <https://arxiv.org/abs/2305.13245>) make a grouped-query model of a
#' multi-head one; a little more training, 5% of the original steps in the paper, then
#' brings the quality back.
#'
#' @inheritParams attention_scores
#' @param model A Functional or Sequential model, nested ones included; it is left as it is.
#' @param num_key_value_heads `NULL` to keep the heads, or a number that divides the
#'   key/value heads of every attention layer. 1 makes multi-query attention.
#' @param method How heads are merged: their `"mean"`, the `"first"` of each group, or new
#'   `"random"` ones.
#' @param seed Whole number, for `"random"`.
#'
#' @returns The copy, compiled as `model` was, with a fresh optimizer.
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
    as_int(seed),
    doing = "convert the attention layers"
  )
}
