#' Rotary position embedding (RoPE)
#'
#' @description
#' Rotary position embedding (Su et al. 2021), used by most language models: queries and
#' keys are rotated by their positions, so that their products depend only on the distance
#' between them.
#'
#' @details
#' The first R features of each query and key head form R / 2 pairs; pair
#' i = 0, ..., R / 2 - 1 is rotated by the angle
#'
#' \ifelse{html}{\out{<i>p</i> &theta;<sup>&minus;2<i>i</i>/<i>R</i></sup>}}{\eqn{p \, \theta^{-2i/R}}{p * theta^(-2 i / R)}}
#'
#' where p is the position of the token, a whole or a real number. Angles are computed in 32-bit
#' floats, whatever the `dtype` of the layer; of real positions in 64-bit floats, except on JAX.
#'
#' Positions are 0, 1, ...; with a cache they continue from its length. The call argument
#' `positions` sets them for each token.
#'
#' @param theta The base of the frequencies.
#' @param fraction The share of each head's features that is rotated, the first ones; the
#'   others do not depend on the position. R = `fraction` * H must be even.
#' @param layout Which features form a pair: `"half"` pairs feature i with i + R / 2,
#'   `"interleaved"` pairs the neighbours 2 i and 2 i + 1. Trained weights work with one
#'   of them only.
#' @param scaling `NULL`, or a list that extends a model beyond the length that it was
#'   trained on; see the section Scaling.
#'
#' @section Scaling:
#' The parameters have the names of published model configs. Their entry `rope_scaling`
#' can be given unchanged (`rope_type` is read as `type`).
#'
#' * `list(type = "linear", factor = 8)` divides positions by the factor (Chen et
#'   al. 2023).
#' * `list(type = "ntk", factor = 8)` replaces theta by `theta * factor^(R / (R - 2))`.
#' * `list(type = "yarn", factor = 32, original_max_position_embeddings = 4096)`
#'   divides the frequencies of slow pairs by the factor, keeps those of fast pairs, and
#'   interpolates between them. Logits are multiplied by the square of the attention
#'   factor, `0.1 * log(factor) + 1` (Peng et al. 2023). Further parameters:
#'   `attention_factor`, `beta_fast` (32), `beta_slow` (1), `mscale`, `mscale_all_dim` and
#'   `truncate` (TRUE).
#' * `list(type = "llama3", factor = 8)` is the scaling of Llama 3.1. Further parameters:
#'   `low_freq_factor` (1), `high_freq_factor` (4) and
#'   `original_max_position_embeddings` (8192).
#'
#' @section Models:
#' * Llama 2, Mistral, Gemma 2: `position_rotary()`
#' * Llama 3: `theta = 500000`; from Llama 3.1 on with the scaling `"llama3"` above
#' * Qwen 3: `theta = 1000000`
#' * Gemma 3: layers with a window as Gemma 2; the other layers `theta = 1000000`, in
#'   models from 4B on with `scaling = list(type = "linear", factor = 8)`
#' * GPT-NeoX: `fraction = 0.25`
#' * GPT-J: `fraction = 0.25, layout = "interleaved"`
#' * gpt-oss: `theta = 150000` with the scaling `"yarn"` above and `truncate = FALSE`
#'
#' @returns A position encoding for the argument `position` of the layers.
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
