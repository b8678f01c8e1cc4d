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
#' @param sections `NULL`, or for positions of several axes the number of pairs that each axis
#'   rotates; see the section Positions of several axes.
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
#' * `list(type = "longrope", short_factor =, long_factor =, original_max_position_embeddings =
#'   4096, max_position_embeddings = 131072)` is LongRoPE, of Phi-3 (Ding et al. 2024): a divisor
#'   for each of the R / 2 pairs, the long ones for sequences that are longer than the original
#'   length. Logits are multiplied by the square of
#'   `sqrt(1 + log(factor) / log(original_max_position_embeddings))`, where the factor is
#'   `max_position_embeddings / original_max_position_embeddings`; `factor` and
#'   `attention_factor` replace it.
#' * `list(type = "dynamic", factor = 2, original_max_position_embeddings = 2048)` is dynamic
#'   NTK: for a sequence of L tokens, more than the original length O (a config's
#'   `max_position_embeddings`), theta is multiplied by
#'   `(factor * L / O - factor + 1)^(R / (R - 2))`.
#' * `list(type = "proportional", partial_rotary_factor = 0.25)` is that of Gemma 4: of all pairs
#'   of a head, with `fraction = 1`, only the first ones are rotated. `factor` (1) divides their
#'   frequencies.
#'
#' With `"longrope"` and `"dynamic"` the length of a sequence is its largest position plus one. A
#' cached key is not rotated again, so a model is decoded only up to
#' `original_max_position_embeddings`; a longer `max_length` is an error. With `length` in the list
#' all sequences have the frequencies of this length, and decoding has no limit.
#'
#' @section Positions of several axes:
#' With `sections`, the call argument `positions` may be an array (B, T, axes), such as frame, row
#' and column of each token. The pairs of features are divided among the axes:
#'
#' * `sections = c(16, 24, 24)`: consecutive pairs, each with its frequency among all R / 2 pairs
#'   (Qwen2-VL);
#' * `sections = list(type = "interleaved", sizes = c(24, 20, 20))`: pairs 0, 1, 2, 3, ... belong
#'   to the axes in turn; those that are left to the first axis (Qwen3-VL);
#' * `sections = list(type = "axial", sizes = c(16, 16))`: consecutive pairs, and each axis has
#'   frequencies from the fastest on, as for the rows and columns of an image.
#'
#' The sum of the sizes is R / 2. A layer that attends over as many axes, such as the rows and
#' columns of images (B, rows, columns, D), takes the indices along them where no positions are
#' given. Otherwise a token without positions, or with positions (B, T), has the same one on
#' all axes, as text has; `"axial"` needs positions. `use_causal_mask`, `sliding_window`,
#' `mask` and `query_scale` compare the order of the tokens, not positions of several axes.
#' Text is decoded with a cache; models with an input for positions are not.
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
#' * Phi-3 with 128k tokens: the scaling `"longrope"` with the lists of its config
#' * Qwen2-VL: `theta = 1000000, sections = c(16, 24, 24)`
#' * Qwen3-VL: `theta = 5000000` with the `"interleaved"` sections above
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
#' Ding et al. (2024). LongRoPE: Extending LLM Context Window Beyond 2 Million Tokens.
#' \doi{10.48550/arXiv.2402.13753}
#'
#' Wang et al. (2024). Qwen2-VL: Enhancing Vision-Language Model's Perception of the World at
#' Any Resolution. \doi{10.48550/arXiv.2409.12191}
#'
#' @seealso [position_alibi()], [position_relative()], [layer_group_query_attention()]
#' @export
#' @examples
#' position_rotary()
#'
#' # Llama 3.1
#' position_rotary(theta = 500000, scaling = list(type = "llama3", factor = 8))
#'
#' # Qwen2-VL
#' position_rotary(theta = 1000000, sections = c(16, 24, 24))
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
  scaling = NULL,
  sections = NULL
) {
  check_number(theta, above = 1)
  check_number(fraction, above = 0, max = 1)
  layout <- check_choice(layout, c("half", "interleaved"))
  scaling <- check_scaling(scaling)
  sections <- check_sections(sections)
  check_rotary_together(fraction, scaling, sections)
  new_position(
    "position_rotary",
    "RotaryPosition",
    theta = as.double(theta),
    fraction = as.double(fraction),
    layout = layout,
    scaling = scaling,
    sections = sections
  )
}

check_rotary_together <- function(
  fraction,
  scaling,
  sections,
  call = caller_env()
) {
  if (identical(scaling$type, "proportional") && fraction < 1) {
    hint <- "The share of rotated features is `partial_rotary_factor` of the scaling."
    rule <- "1 with a scaling of type \"proportional\""
    abort_argument("fraction", rule, fraction, hint, call)
  }
  axial <- is.list(sections) && identical(sections$type, "axial")
  if (!is.null(scaling) && axial) {
    rule <- "NULL with sections of type \"axial\""
    abort_argument("scaling", rule, scaling, call = call)
  }
}
