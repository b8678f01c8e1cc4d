#' Relative position bias (T5, Swin, BEiT)
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
#' @param num_buckets The number of buckets, even. Not with several axes.
#' @param max_distance All distances from this one on share a bucket. Greater than half of
#'   `num_buckets`. With several axes the farthest offset that is told apart, one number or one for
#'   each axis.
#' @param axes The number of axes of a position.
#' @param class_token With several axes: whether the first token of a row is a class token, which
#'   has no place in the image.
#'
#' @section Positions of several axes:
#' With `axes = 2` the bias depends on the offsets along rows and columns, as in Swin (Liu et
#' al. 2021): there are no buckets, and each pair of offsets from -m to m, where m is the
#' `max_distance` of an axis, has a number for each head; farther offsets count as m. The
#' call argument `positions` is an array (B, T, 2). A layer that attends over two axes,
#' such as the windows (B, h, w, D) of an image, takes the indices along them where no
#' positions are given. Windows of h x w have `max_distance = c(h - 1, w - 1)`.
#'
#' The table has a row for each pair of offsets, the product of 2m + 1 over the axes; the offset
#' along the last axis varies fastest, and offsets are query less key. So a
#' `relative_position_bias_table` of Swin fits unchanged. Models with such positions are not
#' decoded.
#'
#' With `class_token = TRUE`, as in BEiT (Bao et al. 2022), the table has three more rows: for the
#' class token as the query, for it as the key, and for both. `positions` must be given, for all
#' tokens; the first one of a row may be any number.
#'
#' @section Models:
#' T5: 32 buckets up to 128, one table for all layers of the encoder and one for those of
#' the decoder. T5 does not scale its logits by 1 / sqrt(H): multiply the query kernel of
#' its checkpoints by sqrt(H), or make the layers with `scale = 1`.
#'
#' Swin: `position_relative(max_distance = 6, axes = 2)` for windows of 7 x 7.
#'
#' BEiT: `position_relative(max_distance = 13, axes = 2, class_token = TRUE)` for 14 x 14 patches.
#' Its key projection has no bias: set it to 0. The table of a checkpoint fits unchanged.
#'
#' @inherit position_rotary return
#' @references
#' Raffel et al. (2020). Exploring the Limits of Transfer Learning with a Unified
#' Text-to-Text Transformer. \doi{10.48550/arXiv.1910.10683}
#'
#' Bao et al. (2022). BEiT: BERT Pre-Training of Image Transformers.
#' \doi{10.48550/arXiv.2106.08254}
#'
#' Liu et al. (2021). Swin Transformer: Hierarchical Vision Transformer using Shifted Windows.
#' \doi{10.48550/arXiv.2103.14030}
#'
#' @seealso [position_relative_keys()], [position_rotary()], [position_alibi()],
#'   [layer_group_query_attention()]
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
#'
#' # Windows of 3 x 5 of an image
#' windows <- array(rnorm(2 * 3 * 5 * 16), c(2, 3, 5, 16))
#' windows |>
#'   layer_multi_head_attention(
#'     num_heads = 4,
#'     key_dim = 8,
#'     position = position_relative(max_distance = c(2, 4), axes = 2)
#'   ) |>
#'   as.array() |>
#'   dim()
#'
#' # A class token and 2 x 3 patches, whose places are rows and columns
#' tokens <- array(rnorm(7 * 16), c(1, 7, 16))
#' places <- rbind(c(0, 0), as.matrix(expand.grid(row = 0:1, column = 0:2)))
#' tokens |>
#'   layer_multi_head_attention(
#'     num_heads = 4,
#'     key_dim = 8,
#'     position = position_relative(max_distance = c(1, 2), axes = 2, class_token = TRUE),
#'     positions = array(places, c(1, 7, 2))
#'   ) |>
#'   as.array() |>
#'   dim()
position_relative <- function(
  num_buckets = 32,
  max_distance = 128,
  axes = 1,
  class_token = FALSE
) {
  check_whole_number(axes, min = 1, max = 4)
  check_flag(class_token)
  if (axes > 1) {
    if (!missing(num_buckets)) {
      hint <- "Each offset has a number; `max_distance` is the farthest."
      rule <- "left out with several axes"
      abort_argument("num_buckets", rule, num_buckets, hint)
    }
    return(position_of_axes(max_distance, axes, class_token))
  }
  if (class_token) {
    rule <- "FALSE for positions of one axis"
    abort_argument("class_token", rule, class_token)
  }
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

position_of_axes <- function(
  max_distance,
  axes,
  class_token,
  call = caller_env()
) {
  arg <- "max_distance"
  check_whole_numbers(max_distance, min = 0, max = 2^18, arg = arg, call = call)
  farthest <- as.integer(unlist(max_distance))
  if (!length(farthest) %in% c(1, axes)) {
    rule <- paste("one whole number, or one for each of", axes, "axes")
    abort_argument(arg, rule, max_distance, call = call)
  }
  if (prod(2 * rep_len(farthest, axes) + 1) > 2^22) {
    rule <- "so small that the table has at most 4194304 rows"
    hint <- "It has 2 * `max_distance` + 1 rows for each axis, multiplied."
    abort_argument(arg, rule, max_distance, hint, call)
  }
  further <- if (class_token) list(class_token = TRUE)
  args <- list(max_distance = farthest, axes = as.integer(axes), shared = TRUE)
  class <- c("position_relative", "RelativePosition")
  do.call(new_position, c(class, args, further))
}
