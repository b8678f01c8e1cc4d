#' Fine-tune attention layers with LoRA
#'
#' Freezes a model and adds trainable low-rank factors to the kernels of its attention
#' layers (LoRA: Hu et al. 2021, <https://arxiv.org/abs/2106.09685>). The factors are those of
#' Keras: at first their product is zero, and they are saved with the model.
#'
#' @inheritParams attention_scores
#' @param model A built model with our attention layers. It is changed in place, and has to
#'   be compiled before training. For a model with Keras's layers see [convert_attention()].
#' @param rank The rank of the factors, for instance 4 or 8.
#' @param alpha The product of the factors is multiplied by `alpha / rank`; `NULL` is `rank`.
#' @param projections The kernels that get factors: some of `"query"`, `"key"`, `"value"`,
#'   `"output"`, `"gate"`. `"value"` is the projection of keys in a layer with
#'   `use_key_as_value`.
#'
#' @returns The model, invisibly.
#' @export
#' @examplesIf kerasattention:::can_run_examples()
#' keras <- reticulate::import("keras")
#' input <- keras$Input(reticulate::tuple(6L, 16L))
#' model <- keras$Model(input, input |> layer_multi_head_attention(4, 4))
#' enable_lora(model, rank = 2)
#' length(model$trainable_weights)
enable_lora <- function(
  model,
  rank,
  ...,
  alpha = NULL,
  projections = c("query", "value"),
  layers = NULL
) {
  check_dots(list(...), c("alpha", "projections", "layers"))
  check_required(model)
  check_model(model)
  check_required(rank)
  check_whole_number(rank, min = 1)
  check_number(alpha, above = 0, null = TRUE)
  check_choices(projections, c("query", "key", "value", "output", "gate"))
  check_layers(layers)
  call_python(
    "enable_lora",
    model,
    as_int(rank),
    alpha = alpha,
    projections = as.list(projections),
    layers = as_layers(layers),
    doing = "enable LoRA"
  )
  invisible(model)
}
