#' Lower logits by distance
#'
#' @description
#' Attention with linear biases, ALiBi (Press et al. 2022): the logit of a query and a
#' key that are d positions apart is lowered by
#'
#' \deqn{m_h \, |d|}{m_h * |d|}
#'
#' with a fixed slope for each head. For N heads, a power of two, the slopes are
#' \eqn{2^{-8/N}, 2^{-16/N}, \ldots, 2^{-8}}{2^(-8 / N), 2^(-16 / N), ..., 2^(-8)};
#' for any other N those of the power of two below, filled up with every other slope of
#' the power above, as in the authors' code. Without a causal mask keys on both sides of
#' the query are treated alike.
#'
#' @section Who uses it:
#' MPT and BLOOM. (For numbers of heads that are no power of two MPT orders its slopes
#' in another way.)
#'
#' @inherit position_rotary return
#' @references
#' Press et al. (2022). Train Short, Test Long: Attention with Linear Biases Enables
#' Input Length Extrapolation. \doi{10.48550/arXiv.2108.12409}
#'
#' @seealso [position_rotary()], [position_relative()], [layer_group_query_attention()]
#' @export
#' @examples
#' position_alibi()
#'
#' @examplesIf kerasattention:::can_run_examples()
#' x <- array(rnorm(2 * 5 * 16), c(2, 5, 16))
#' x |>
#'   layer_multi_head_attention(
#'     num_heads = 4,
#'     key_dim = 8,
#'     position = position_alibi(),
#'     use_causal_mask = TRUE
#'   ) |>
#'   as.array() |>
#'   dim()
position_alibi <- function() {
  new_position("position_alibi", "AlibiPosition")
}
