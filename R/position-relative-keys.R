#' Relative keys (Shaw, BERT, Transformer-XL, DeBERTa)
#'
#' @description
#' Each distance between a query and a key has its own key, a relative key. Its product with
#' the query is added to their logit, so that what a token looks for and how far away it looks
#' depend on each other.
#'
#' @details
#' All terms have the factor of the logits, 1 / sqrt(H) by default. d is the position of the key
#' less that of the query; distances beyond `max_distance` share the relative key of the
#' farthest. For a query q and a key k the logit is, before the factor,
#'
#' * `"shaw"`: q k + q r(d), with a learned table r of 2 `max_distance` + 1 rows for all heads
#'   (Shaw et al. 2018; `"relative_key"` in models of Hugging Face). Values have no relative
#'   part.
#' * `"huang"`: q k + q r(d) + k r(d), with the same table for queries and keys (Huang et al.
#'   2020, method 4; `"relative_key_query"` in models of Hugging Face). It needs as many key/value
#'   heads as query heads.
#' * `"transformer_xl"`: (q + u) k + (q + v) r(d), where r(d) is a learned projection of
#'   sinusoids of the distance, and u and v are learned vectors of each head (Dai et al. 2019). The
#'   sinusoids have N * H features, sine and cosine in turn as in Conformers. Give the
#'   longest sequence as `max_distance`.
#' * `"deberta"`: q k + q r(d) + k s(d), with learned relative keys r and relative queries s of
#'   each head and 2 `max_distance` rows, or `num_buckets` (He et al. 2021). It needs as many
#'   key/value heads as query heads.
#'
#' No array (B, N, T, S) is made on the path for long sequences: the products are computed for a
#' block of queries and keys at a time. A `logit_soft_cap` caps the product with the key only.
#'
#' The tables are weights of the layer. Layers that are given the same object share them.
#'
#' @param max_distance The largest distance that has its own relative key.
#' @param kind `"shaw"`, `"huang"`, `"transformer_xl"` or `"deberta"`.
#' @param num_buckets For `"deberta"`: `NULL` for a row for each distance, or the number of rows, a
#'   multiple of 4. Distances up to a quarter of it have a row each, greater ones grow with the
#'   logarithm up to `max_distance`. It is twice the `position_buckets` of a config.
#'
#' @section Models:
#' * Wav2Vec2-BERT: `position_relative_keys(64)`. Its table ends 8 positions after the query:
#'   repeat its last row.
#' * BERT with `"relative_key"` is `"shaw"`, with `"relative_key_query"` `"huang"`;
#'   `max_distance` is its `max_position_embeddings` - 1. The rows of its table are those of query
#'   less key: reverse them.
#' * Conformers such as Wav2Vec2-Conformer, and Transformer-XL: `"transformer_xl"`.
#' * DeBERTa-v2 and v3: `position_relative_keys(512, "deberta", num_buckets = 512)` in layers with
#'   `scale = 1 / sqrt(3 * H)`. The tables r and s of a layer are the checkpoint's normalised
#'   `rel_embeddings`, projected by the key and the query projection of the layer.
#'
#' @inherit position_rotary return
#' @references
#' Shaw et al. (2018). Self-Attention with Relative Position Representations.
#' \doi{10.48550/arXiv.1803.02155}
#'
#' Huang et al. (2020). Improve Transformer Models with Better Relative Position Embeddings.
#' \doi{10.48550/arXiv.2009.13658}
#'
#' Dai et al. (2019). Transformer-XL: Attentive Language Models Beyond a Fixed-Length Context.
#' \doi{10.48550/arXiv.1901.02860}
#'
#' He et al. (2021). DeBERTa: Decoding-enhanced BERT with Disentangled Attention.
#' \doi{10.48550/arXiv.2006.03654}
#'
#' @seealso [position_relative()], [position_rotary()], [layer_group_query_attention()]
#' @export
#' @examples
#' position_relative_keys(64)
#' position_relative_keys(511, "huang")
#' position_relative_keys(512, "deberta", num_buckets = 512)
#'
#' @examplesIf kerasattention:::can_run_examples()
#' x <- array(rnorm(2 * 5 * 16), c(2, 5, 16))
#' x |>
#'   layer_multi_head_attention(
#'     num_heads = 4,
#'     key_dim = 8,
#'     position = position_relative_keys(10, "transformer_xl")
#'   ) |>
#'   as.array() |>
#'   dim()
position_relative_keys <- function(
  max_distance,
  kind = c("shaw", "huang", "transformer_xl", "deberta"),
  num_buckets = NULL
) {
  check_required(max_distance)
  check_whole_number(max_distance, min = 1, max = 2^18)
  kind <- check_choice(kind, c("shaw", "huang", "transformer_xl", "deberta"))
  args <- list(max_distance = as.integer(max_distance), kind = kind)
  if (!is.null(num_buckets)) {
    check_key_buckets(num_buckets, max_distance, kind)
    args$num_buckets <- as.integer(num_buckets)
  }
  class <- c("position_relative_keys", "RelativeKeysPosition")
  do.call(new_position, c(class, args, shared = TRUE))
}

check_key_buckets <- function(
  num_buckets,
  max_distance,
  kind,
  call = caller_env()
) {
  arg <- "num_buckets"
  if (kind != "deberta") {
    rule <- "NULL but for the kind \"deberta\""
    abort_argument(arg, rule, num_buckets, call = call)
  }
  check_whole_number(num_buckets, min = 8, null = TRUE, arg = arg, call = call)
  if (num_buckets %% 4 != 0) {
    abort_argument(arg, "a multiple of 4, or NULL", num_buckets, call = call)
  }
  if (max_distance - 1 <= num_buckets / 4) {
    rule <- paste("less than 4 * (`max_distance` - 1),", 4 * (max_distance - 1))
    hint <- "Each distance up to a quarter of it has a row."
    abort_argument(arg, rule, num_buckets, hint, call)
  }
}
