#' Turn queries and keys by their positions
#'
#' @description
#' Rotary position embedding (Su et al. 2021), the positions of most language models
#' of today. Pair i of the R features of a head that turn is rotated by the angle
#'
#' \deqn{p \, \theta^{-2i/R}}{p * theta^(-2 i / R)}
#'
#' where p is the position of the token and i = 0, ..., R / 2 - 1, in queries and keys
#' alike: their products then depend on distances alone. Angles are computed in 32-bit
#' floats whatever the layer's `dtype`.
#'
#' Positions are 0, 1, ..., or where a cache stands, or given for each token by the
#' call argument `positions`.
#'
#' @param theta The base of the frequencies.
#' @param fraction The share of each head's features that turn, the first ones; the
#'   rest carry no position. R = `fraction` * H must be even.
#' @param layout Which features make a pair: `"half"` pairs feature i with i + R / 2,
#'   `"interleaved"` the neighbours 2 i and 2 i + 1. Weights fit one of them only.
#' @param scaling `NULL`, or a list that says how a model reaches beyond the length
#'   that it was trained on; see the section Scaling.
#'
#' @section Scaling:
#' The parameters have the names of the published model configs, whose entry
#' `rope_scaling` can be given as it is (`rope_type` is taken for `type`).
#'
#' * `list(type = "linear", factor = 8)`: positions divided by the factor (Chen et
#'   al. 2023).
#' * `list(type = "ntk", factor = 8)`: theta becomes theta * factor^(R / (R - 2)).
#' * `list(type = "yarn", factor = 32, original_max_position_embeddings = 4096)`:
#'   slow pairs divided by the factor, fast ones kept, a ramp between them, and the
#'   logits sharpened by the attention factor, which is 0.1 log(factor) + 1, squared
#'   (Peng et al. 2023). Also takes `attention_factor`, `beta_fast` (32), `beta_slow`
#'   (1), `mscale`, `mscale_all_dim` and `truncate` (TRUE).
#' * `list(type = "llama3", factor = 8)`: as Llama 3.1 does. Also takes
#'   `low_freq_factor` (1), `high_freq_factor` (4) and
#'   `original_max_position_embeddings` (8192).
#'
#' @section Who uses it:
#' * Llama 2, Mistral, Gemma 2: `position_rotary()`
#' * Llama 3: `theta = 500000`; from Llama 3.1 on with the scaling `"llama3"` above
#' * Qwen 3: `theta = 1000000`
#' * Gemma 3: layers with a window as Gemma 2; the others `theta = 1000000`, from 4B on
#'   with `scaling = list(type = "linear", factor = 8)`
#' * GPT-NeoX: `fraction = 0.25`
#' * GPT-J: `fraction = 0.25, layout = "interleaved"`
#' * gpt-oss: `theta = 150000` with the scaling `"yarn"` above and `truncate = FALSE`
#'
#' @returns A position for the argument `position` of the layers.
#'
#' @references
#' Su et al. (2021). RoFormer: Enhanced Transformer with Rotary Position Embedding.
#' \doi{10.48550/arXiv.2104.09864}
#'
#' Chen et al. (2023). Extending Context Window of Large Language Models via Positional
#' Interpolation. \doi{10.48550/arXiv.2306.15595}
#'
#' Peng et al. (2023). YaRN: Efficient Context Window Extension of Large Language
#' Models. \doi{10.48550/arXiv.2309.00071}
#'
#' @seealso [position_alibi()], [position_relative()], [layer_group_query_attention()]
#' @export
#' @examples
#' position_rotary()
#'
#' # Llama 3.1
#' position_rotary(theta = 500000, scaling = list(type = "llama3", factor = 8))
#'
#' @examplesIf kerasattention:::can_run_examples()
#' x <- array(rnorm(2 * 5 * 16), c(2, 5, 16))
#' x |>
#'   layer_group_query_attention(
#'     head_dim = 8,
#'     num_query_heads = 4,
#'     num_key_value_heads = 2,
#'     position = position_rotary(theta = 500000),
#'     use_causal_mask = TRUE
#'   ) |>
#'   as.array() |>
#'   dim()
position_rotary <- function(
  theta = 10000,
  fraction = 1,
  layout = c("half", "interleaved"),
  scaling = NULL
) {
  check_number(theta, above = 1)
  check_number(fraction, above = 0, max = 1)
  layout <- check_choice(layout, c("half", "interleaved"))
  scaling <- check_scaling(scaling)
  new_position(
    "position_rotary",
    "RotaryPosition",
    theta = as.double(theta),
    fraction = as.double(fraction),
    layout = layout,
    scaling = scaling
  )
}
