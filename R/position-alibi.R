#' ALiBi position bias
#'
#' @description
#' Attention with linear biases, ALiBi (Press et al. 2022): logits are reduced in proportion
#' to the distance between query and key.
#'
#' @details
#' From the logit of a query and a key that are d positions apart, head h subtracts
#'
#' \ifelse{html}{\out{<i>m<sub>h</sub></i> |<i>d</i>|}}{\eqn{m_h \, |d|}{m_h * |d|}}
#'
#' with a fixed slope for each head. For N heads, N a power of two, the slopes are
#' \ifelse{html}{\out{2<sup>&minus;8/<i>N</i></sup>, 2<sup>&minus;16/<i>N</i></sup>, ..., 2<sup>&minus;8</sup>}}{\eqn{2^{-8/N}, 2^{-16/N}, \ldots, 2^{-8}}{2^(-8 / N), 2^(-16 / N), ..., 2^(-8)}}.
#' For other N they are the slopes of the next smaller power of two, followed by every
#' other slope of the next greater one, as in the authors' code. Without a causal mask the
#' bias is the same on both sides of the query.
#'
#' @section Models:
#' MPT and BLOOM. MPT orders its slopes differently where the number of heads is not a
#' power of two.
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
