#' Relative position bias (T5)
#'
#' @description
#' The relative position bias of T5 (Raffel et al. 2020): each head learns one number for
#' each bucket of distances. It is added to the logit of every query and key whose distance
#' is in the bucket.
#'
#' @details
#' Of the 2h buckets for one direction the first h hold one distance each;
#' a greater distance d is in bucket
#'
#' \ifelse{html}{\out{<i>h</i> + floor(<i>h</i> log(<i>d</i>/<i>h</i>) / log(<i>m</i>/<i>h</i>))}}{\eqn{h + \lfloor h \log(d/h) / \log(m/h) \rfloor}{h + floor(h * log(d / h) / log(m / h))}}
#'
#' where m is `max_distance`. All distances from m on are in the last bucket. Half of the
#' `num_buckets` buckets are for keys before the query and half for keys after it; with a
#' causal mask all are for keys before it. Real distances count without their fraction.
#'
#' The table (`num_buckets`, N) is a weight of the layer. Layers that are given the same
#' object share one table, as the layers of T5 do. To give each layer its own table, call
#' `position_relative()` once for each.
#'
#' @param num_buckets The number of buckets, even.
#' @param max_distance All distances from this one on share a bucket. Greater than half of
#'   `num_buckets`.
#'
#' @section Models:
#' T5: 32 buckets up to 128, one table for all layers of the encoder and one for those of
#' the decoder. T5 does not scale its logits by 1 / sqrt(H): multiply the query kernel of
#' its checkpoints by sqrt(H), or make the layers with `scale = 1`.
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
    hint <- "Half of the buckets are for keys before the query, half for keys after it."
    abort_argument("num_buckets", "an even number", num_buckets, hint)
  }
  check_whole_number(max_distance, min = 1, max = 2^18)
  if (max_distance <= num_buckets / 2) {
    rule <- paste("greater than half of `num_buckets`,", num_buckets / 2)
    hint <- "Each of these distances has its own bucket."
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
