#' Multi-head latent attention layer
#'
#' @description
#' Multi-head latent attention (DeepSeek-AI 2024): the keys and values of all N heads are
#' projected from one small latent of each token, and while a model generates only the latents
#' are kept. The cache has B x T x (`kv_rank` + `rotary_dim`) numbers, whatever the number of
#' heads: in DeepSeek-V3, with 128 heads, 576 numbers a token and layer instead of 32,768.
#'
#' @details
#' A token x has a latent c and a rotated key r that all heads share; R rotates by the token's
#' position. The projections of head n are
#' \ifelse{html}{\out{<i>c</i> = rms(<i>W<sub>c</sub> x</i>), <i>r</i> = R(<i>W<sub>r</sub> x</i>), <i>k<sub>n</sub></i> = [<i>U<sub>n</sub> c</i>, <i>r</i>], <i>v<sub>n</sub></i> = <i>V<sub>n</sub> c</i>}}{\eqn{c = \mathrm{rms}(W_c x), \; r = R(W_r x), \; k_n = [U_n c, r], \; v_n = V_n c}{c = rms(W_c x), r = R(W_r x), k_n = [U_n c, r], v_n = V_n c}}
#' and its query is
#' \ifelse{html}{\out{<i>q<sub>n</sub></i> = [<i>A<sub>n</sub> x</i>, R(<i>B<sub>n</sub> x</i>)]}}{\eqn{q_n = [A_n x, R(B_n x)]}{q_n = [A_n x, R(B_n x)]}},
#' or the same of a second latent
#' \ifelse{html}{\out{rms(<i>W<sub>q</sub> x</i>)}}{\eqn{\mathrm{rms}(W_q x)}{rms(W_q x)}} with
#' `query_rank` numbers. The logits are
#' \ifelse{html}{\out{<i>q<sub>n</sub></i> &middot; <i>k<sub>n</sub></i> / &radic;(<i>H</i> + <i>R</i>)}}{\eqn{q_n \cdot k_n / \sqrt{H + R}}{q_n . k_n / sqrt(H + R)}},
#' with H = `head_dim` and R = `rotary_dim`.
#'
#' Since
#' \ifelse{html}{\out{<i>q</i> &middot; <i>U c</i> = <i>U</i><sup>T</sup><i>q</i> &middot; <i>c</i>}}{\eqn{q \cdot U c = U^T q \cdot c}{q . U c = (U' q) . c}},
#' a step of [generate_tokens()] and [incremental_decoder()] multiplies its queries by U, attends to the latents themselves, and
#' multiplies the result by V: no key or value of an earlier token is computed again. The results
#' are those of full passes.
#'
#' The layer is a self-attention. Of the options of [layer_group_query_attention()] it lacks
#' `qk_norm` and `value_norm`. `enable_lora()`, `prune_heads()`, `head_importance()`,
#' `attention_scores()` and `head_parallel()` take it; `load_projections()` and the merging of heads
#' by `convert_attention()` refuse it.
#'
#' @inheritSection shapes Shapes
#' @inheritSection shapes Masks
#' @inheritSection shapes R functions
#' @inheritSection layer_group_query_attention Errors
#'
#' @inheritParams layer_group_query_attention
#' @param object What the layer is applied to:
#'   * nothing, or `NULL`: returns the layer itself, to be called as
#'     `layer(x, attention_mask = ...)`;
#'   * a Keras tensor, a tensor of the backend or an R array, (B, T, D);
#'   * a Sequential model: the layer is added to it.
#' @param num_heads N, the number of heads.
#' @param head_dim H, the features of each query and key head that carry no position.
#' @param kv_rank The size of the latent of keys and values.
#' @param query_rank `NULL`, or the size of the latent from which the queries are projected.
#' @param rotary_dim The features of each query head, and of the shared key, that are rotated:
#'   an even number.
#' @param value_dim The size of each value head.
#' @param use_bias Whether the projections to the latents and the output projection add a bias;
#'   those from the latents never do.
#' @param value,key An error: the layer attends to its own input only.
#' @param position A [position_rotary()] object that rotates the `rotary_dim` features; `NULL` is
#'   `position_rotary(layout = "interleaved")`.
#' @param scale The factor of the logits: `NULL`, a number, or `"learned"` as in
#'   [layer_group_query_attention()]. `NULL` is 1 / sqrt(`head_dim` + `rotary_dim`), which a
#'   scaling `"yarn"` with `mscale_all_dim` m and factor f multiplies by (0.1 m log(f) + 1)^2, as
#'   DeepSeek's models do.
#'
#' @returns Depends on `object`: the layer; a tensor (B, T, D), or with
#'   `return_attention_scores = TRUE` the list
#'   `list(attention_output =, attention_scores =)` of (B, T, D) and (B, N, T, T); or
#'   the Sequential model, invisibly.
#'
#' @references
#' DeepSeek-AI (2024). DeepSeek-V2: A Strong, Economical, and Efficient Mixture-of-Experts
#' Language Model. \doi{10.48550/arXiv.2405.04434}
#'
#' DeepSeek-AI (2024). DeepSeek-V3 Technical Report. \doi{10.48550/arXiv.2412.19437}
#'
#' For the papers of the options see [layer_group_query_attention()].
#'
#' @seealso [layer_group_query_attention()], [position_rotary()], [incremental_decoder()]
#' @export
#' @examplesIf kerasattention:::can_run_examples()
#' keras <- reticulate::import("keras")
#'
#' # 8 heads whose keys and values come from 16 numbers of each token.
#' tokens <- keras$Input(shape = list(NULL), dtype = "int32")
#' hidden <- keras$layers$Embedding(50L, 32L)(tokens) |>
#'   layer_latent_attention(
#'     num_heads = 8,
#'     head_dim = 4,
#'     kv_rank = 16,
#'     rotary_dim = 2,
#'     use_causal_mask = TRUE
#'   )
#' model <- keras$Model(tokens, keras$layers$Dense(50L)(hidden))
#'
#' # The cache: 1 x 100 x (16 + 2) numbers of 4 bytes.
#' decoder <- incremental_decoder(model, batch_size = 1, max_length = 100)
#' decoder$cache_bytes()
#' dim(decoder$prefill(matrix(c(3, 14, 15), 1)))
#'
#' # The layer by itself, with the scores (B, N, T, T).
#' layer <- layer_latent_attention(
#'   num_heads = 8,
#'   head_dim = 4,
#'   kv_rank = 16,
#'   query_rank = 24,
#'   rotary_dim = 2
#' )
#' x <- array(rnorm(2 * 5 * 32), c(2, 5, 32))
#' dim(as.array(layer(x, return_attention_scores = TRUE)$attention_scores))
#' layer
layer_latent_attention <- function(
  object,
  num_heads,
  head_dim,
  kv_rank,
  query_rank = NULL,
  rotary_dim,
  value_dim = head_dim,
  dropout = 0,
  use_bias = FALSE,
  ...,
  value = NULL,
  key = NULL,
  flash_attention = NULL,
  kernel_initializer = "glorot_uniform",
  bias_initializer = "zeros",
  kernel_regularizer = NULL,
  bias_regularizer = NULL,
  activity_regularizer = NULL,
  kernel_constraint = NULL,
  bias_constraint = NULL,
  seed = NULL,
  sliding_window = NULL,
  use_gate = FALSE,
  position = NULL,
  logit_soft_cap = NULL,
  attention_sink = FALSE,
  scale = NULL,
  query_scale = NULL,
  mask = NULL,
  attention_mask = NULL,
  attention_bias = NULL,
  segment_ids = NULL,
  positions = NULL,
  bidirectional = NULL,
  use_causal_mask = FALSE,
  return_attention_scores = FALSE,
  training = NULL
) {
  check_layer_dots(list(...))
  object <- if (missing(object)) NULL else object
  hint <- sizes_hint(object, "num_heads", "head_dim", "kv_rank", "rotary_dim")
  check_required(num_heads, hint)
  check_required(head_dim, hint)
  check_required(kv_rank, hint)
  check_required(rotary_dim, hint)
  arguments <- layer_arguments(environment(), list(...))
  check_layer_arguments(arguments)
  check_rotation(rotary_dim, position)
  check_width(num_heads, head_dim + rotary_dim, c("num_heads", "head_dim"))
  check_width(num_heads, value_dim, c("num_heads", "value_dim"))
  check_self_attention(object, value, key)
  inputs <- check_inputs(object)
  check_call(inputs, arguments, axes = c(3, 3), heads = num_heads)

  compose("LatentAttention", object, inputs, arguments)
}

# R/layer-arguments.R has checked the types. Positions of Python are checked there.
check_rotation <- function(rotary_dim, position, call = caller_env()) {
  if (rotary_dim %% 2 != 0) {
    hint <- "Pairs of features are rotated."
    abort_argument("rotary_dim", "an even number", rotary_dim, hint, call)
  }
  is_other <- is_constructor(position) &&
    position$python_class != "RotaryPosition"
  if (is_other) {
    rule <- "a `position_rotary()` object, or NULL"
    abort_argument("position", rule, position, call = call)
  }
}

check_self_attention <- function(object, value, key, call = caller_env()) {
  given <- c(
    if (!is.null(value)) "value",
    if (!is.null(key)) "key",
    if (is_plain_list(object) && length(object) > 0) "object"
  )
  if (length(given) > 0) {
    rule <- if (given[[1]] == "object") "be one tensor" else "be left out"
    abort(
      "{.arg {given[[1]]}} must {rule}: latent attention is a self-attention.",
      hint = "`layer_group_query_attention()` attends to another sequence.",
      arg = given[[1]],
      call = call
    )
  }
}
