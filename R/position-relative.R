#' Learn a bias for each distance
#'
#' @description
#' The relative position biases of T5 (Raffel et al. 2020): each head learns one number
#' for each bucket of distances, which is added to the logits of all pairs at these
#' distances. Of the 2h buckets of a side the first h hold one distance each, and a
#' farther distance d is in bucket
#'
#' \deqn{h + \lfloor h \log(d/h) / \log(m/h) \rfloor}{h + floor(h * log(d / h) / log(m / h))}
#'
#' up to `max_distance` m, from which on all share the last one. Half of `num_buckets`
#' are for the keys behind the query and half for those ahead; with a causal mask all
#' are for the keys behind.
#'
#' The table (`num_buckets`, N) is a weight of the layer. An object given to several
#' layers is one table that they share, as the layers of T5 do; for a table of its own
#' give each layer a `position_relative()` of its own.
#'
#' @param num_buckets The number of buckets, even.
#' @param max_distance The distance from which on all share a bucket; greater than half
#'   of `num_buckets`.
#'
#' @section Who uses it:
#' T5: 32 buckets up to 128, shared by all layers of its encoder and by all of its
#' decoder. T5 does not scale its logits by 1 / sqrt(H): multiply the query kernel of
#' its checkpoints by sqrt(H).
#'
#' @inherit position_rotary return
#' @references
#' Raffel et al. (2020). Exploring the Limits of Transfer Learning with a Unified
#' Text-to-Text Transformer. \doi{10.48550/arXiv.1910.10683}
#'
#' @seealso [position_rotary()], [position_alibi()], [layer_group_query_attention()]
#' @export
#' @examples
#' position_relative()
#'
#' @examplesIf kerasattention:::can_run_examples()
#' # Two layers with one table
#' keras <- reticulate::import("keras")
#' shared <- position_relative()
#' input <- keras$Input(shape = list(5L, 16L))
#' output <- input |>
#'   layer_multi_head_attention(num_heads = 4, key_dim = 8, position = shared) |>
#'   layer_multi_head_attention(num_heads = 4, key_dim = 8, position = shared)
#' length(keras$Model(input, output)$weights)
position_relative <- function(num_buckets = 32, max_distance = 128) {
  check_whole_number(num_buckets, min = 4, max = 2^14)
  if (num_buckets %% 2 != 0) {
    hint <- "Half of the buckets are for the keys behind, half for those ahead."
    abort_argument("num_buckets", "an even number", num_buckets, hint)
  }
  check_whole_number(max_distance, min = 1, max = 2^18)
  if (max_distance <= num_buckets / 2) {
    rule <- paste("greater than half of `num_buckets`,", num_buckets / 2)
    hint <- "So many distances have a bucket of their own."
    abort_argument("max_distance", rule, max_distance, hint)
  }
  new_position(
    "position_relative",
    "RelativePosition",
    num_buckets = as.integer(num_buckets),
    max_distance = as.integer(max_distance),
    shared = TRUE
  )
}
