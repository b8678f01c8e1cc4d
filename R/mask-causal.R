#' Masks as rules of positions
#'
#' @description
#' Rules that say which keys a query attends to, for the argument `mask` of
#' [layer_multi_head_attention()] and [layer_group_query_attention()]. A query at position q
#' sees a key at position k where
#'
#' | mask | rule | used by |
#' |---|---|---|
#' | `mask_causal()` | k <= q | language models |
#' | `mask_window(before, after)` | q - before < k < q + after | Longformer, Mistral |
#' | `mask_chunk(size)` | q %/% size == k %/% size | Llama 4 |
#' | `mask_prefix(n)`, `mask_sinks(n)` | k < n | T5's prefix, StreamingLLM |
#' | `mask_dilated(step)` | (q - k) %% step == 0 | Sparse Transformer |
#' | `mask_blocks(matrix, size)` | `matrix[q %/% size + 1, k %/% size + 1]` | BigBird |
#' | `mask_function(f)` | `f(q, k)` | |
#'
#' `&` (both), `|` (either) and `!` (not) combine them. [plot()][plot.kerasattention_mask] shows
#' a mask.
#'
#' @details
#' Positions count from 0. They are those of the call argument `positions`, by default the
#' indices of the tokens, and while a model generates those of its cache. So a mask holds in
#' training and in [generate_tokens()] alike; tokens must then not see tokens that are still to
#' come: add `& mask_causal()`. With `mask_causal() | mask_prefix(n)` prompts must have at least n
#' tokens.
#'
#' Other masks hold beside it: `use_causal_mask`, `sliding_window`, `attention_mask`,
#' `segment_ids` and padding. The call argument `bidirectional` of the layers names spans of
#' tokens that see each other whatever the mask says.
#'
#' Blocks of queries and keys that a mask rules out are not computed, and blocks that it leaves
#' whole need no mask. Neither is possible where `positions` or `bidirectional` are given.
#'
#' @section R functions:
#' `f` is called for each block of queries and keys, never for all of them at once. It gets two
#' arrays of one shape, whole numbers, and returns `TRUE` or `FALSE` for each element. Where the
#' backend compiles (`fit()`, `predict()`, and JAX in general) it gets objects in their place
#' that take operators and `abs()`, `floor()`, `ceiling()`, `trunc()`, `sqrt()`, `exp()`, `log()`,
#' `sign()`, `cos()` and `sin()`. `f` runs in R's main thread only. On a GPU torch computes
#' gradients in another thread, so training with `f` may be an error there, which names the ways out.
#'
#' An R function is not saved with a model. A model that is loaded in another session has its
#' weights, but is an error when it is called: build it with your R code and load the weights
#' only. All other masks are saved.
#'
#' @param before,after Positive whole numbers: a query sees keys fewer than this many positions
#'   before and after it. `after = 1`: none after it.
#' @param size The number of positions of a chunk or block.
#' @param n The number of positions that all queries see.
#' @param step A positive whole number.
#' @param matrix A logical matrix with a row for each block of queries and a column for each
#'   block of keys. Longer sequences are an error.
#' @param f A function of the positions of queries and keys.
#'
#' @returns A mask, an object of class `kerasattention_mask`.
#' @references
#' Beltagy et al. (2020). Longformer: The Long-Document Transformer.
#' \doi{10.48550/arXiv.2004.05150}
#'
#' Xiao et al. (2023). Efficient Streaming Language Models with Attention Sinks.
#' \doi{10.48550/arXiv.2309.17453}
#'
#' Raffel et al. (2020). Exploring the Limits of Transfer Learning with a Unified Text-to-Text
#' Transformer. \doi{10.48550/arXiv.1910.10683}
#'
#' Child et al. (2019). Generating Long Sequences with Sparse Transformers.
#' \doi{10.48550/arXiv.1904.10509}
#'
#' Zaheer et al. (2020). Big Bird: Transformers for Longer Sequences.
#' \doi{10.48550/arXiv.2007.14062}
#'
#' @seealso [plot.kerasattention_mask()], [layer_group_query_attention()]
#' @export
#' @examples
#' # A window beside the first 4 tokens, as in StreamingLLM.
#' mask_causal() & (mask_window(256) | mask_sinks(4))
#'
#' # The first 10 tokens see each other, the others only what came before.
#' mask_causal() | mask_prefix(10)
#'
#' # Whole numbers that divide each other, as a function.
#' mask_causal() & mask_function(function(q, k) q %% (k + 1) == 0)
#'
#' @examplesIf kerasattention:::can_run_examples()
#' x <- array(rnorm(2 * 9 * 16), c(2, 9, 16))
#' scores <- x |>
#'   layer_multi_head_attention(
#'     num_heads = 2,
#'     key_dim = 8,
#'     mask = mask_causal() & mask_chunk(3),
#'     return_attention_scores = TRUE
#'   )
#' round(as.array(scores$attention_scores)[1, 1, , ], 2)
mask_causal <- function() {
  new_mask("mask_causal", "CausalMask", list(), function(q, k) k <= q)
}

#' @rdname mask_causal
#' @export
mask_window <- function(before, after = before) {
  check_required(before)
  check_whole_number(before, min = 1)
  check_whole_number(after, min = 1)
  args <- if (before == after) list(before) else list(before, after)
  new_mask("mask_window", "WindowMask", args, function(q, k) {
    q - before < k & k < q + after
  })
}

#' @rdname mask_causal
#' @export
mask_chunk <- function(size) {
  check_required(size)
  check_whole_number(size, min = 1)
  new_mask("mask_chunk", "ChunkMask", list(size), function(q, k) {
    q %/% size == k %/% size
  })
}

#' @rdname mask_causal
#' @export
mask_prefix <- function(n) {
  check_required(n)
  check_whole_number(n, min = 1)
  new_mask("mask_prefix", "PrefixMask", list(n), function(q, k) k < n)
}

#' @rdname mask_causal
#' @export
mask_sinks <- function(n) {
  check_required(n)
  check_whole_number(n, min = 1)
  new_mask("mask_sinks", "PrefixMask", list(n), function(q, k) k < n)
}

#' @rdname mask_causal
#' @export
mask_dilated <- function(step) {
  check_required(step)
  check_whole_number(step, min = 1)
  new_mask("mask_dilated", "DilatedMask", list(step), function(q, k) {
    (q - k) %% step == 0
  })
}

#' @rdname mask_causal
#' @export
mask_blocks <- function(matrix, size) {
  check_required(matrix)
  check_required(size)
  check_block_matrix(matrix)
  check_whole_number(size, min = 1)
  matrix <- unname(matrix) == 1
  new_mask("mask_blocks", "BlockMask", list(matrix, size), function(q, k) {
    row <- q %/% size + 1
    column <- k %/% size + 1
    inside <- row <= nrow(matrix) & column <= ncol(matrix)
    visible <- array(FALSE, dim(q))
    visible[inside] <- matrix[cbind(row[inside], column[inside])]
    visible
  })
}

check_block_matrix <- function(x, call = caller_env()) {
  good <- is_numeric_array(x) && is.matrix(x) && length(x) > 0
  if (!good || anyNA(x) || !all(x %in% c(0, 1))) {
    rule <- "a matrix of TRUE and FALSE, a row for each block of queries"
    abort_argument("matrix", rule, x, call = call)
  }
}
