#' Collect the attention maps of a model
#'
#' Runs a trained model on an input and returns the attention weights (after the softmax)
#' of every head of every attention layer. The layers may be ours or Keras's. The model is
#' not changed.
#'
#' For long inputs choose a few `queries`: 16 rows of a context of 16,000 steps take
#' 16 x 16,000 numbers for each head instead of 16,000 x 16,000.
#'
#' @param model A Functional or Sequential Keras model.
#' @param x Input of the model: an R matrix or array (integers for tokens), a tensor,
#'   or a list of them for a model with several inputs.
#' @param layers Names of attention layers, or their numbers in the order of their calls,
#'   from 1; `NULL` for all.
#' @param ... Not used.
#' @param heads,queries Numbers of heads and of query positions, from 1; `NULL` for
#'   all.
#' @param tokens Labels of the positions, for instance the words of a text: a character
#'   vector of length S, used by `plot()`.
#'
#' @returns An `attention_scores` object. It has methods for
#' * `[`: `scores[layer, head, query, key, sample]`, by number; layers also by name;
#' * `as.data.frame()`: a row for each weight, with the columns `layer`, `sample`, `head`,
#'   `query`, `key`, `weight`;
#' * `summary()`: mean entropy (in bits) and mean distance for each head;
#' * `plot()` and [ggplot2::autoplot()], see [plot.attention_scores()].
#'
#' `scores$maps` is a list of arrays (B, N, T, S), one for each layer: samples, heads,
#' queries, keys. Where all keys of a query are masked out, its row is zero.
#' @seealso [attention_rollout()], [head_importance()].
#' @export
#' @examplesIf kerasattention:::can_run_examples()
#' keras <- reticulate::import("keras")
#' input <- keras$Input(reticulate::tuple(6L, 16L))
#' output <- input |> layer_multi_head_attention(num_heads = 2, key_dim = 8)
#' model <- keras$Model(input, output)
#' x <- array(rnorm(6 * 16), c(1, 6, 16))
#'
#' scores <- attention_scores(model, x, tokens = c("the", "cat", "sat", "on", "the", "mat"))
#' scores
#' dim(scores$maps[[1]])
#' head(as.data.frame(scores))
#' @examplesIf kerasattention:::can_run_examples() && requireNamespace("ggplot2", quietly = TRUE)
#' plot(scores)
attention_scores <- function(
  model,
  x,
  layers = NULL,
  ...,
  heads = NULL,
  queries = NULL,
  tokens = NULL
) {
  check_dots(list(...), c("heads", "queries", "tokens"))
  check_required(model)
  check_required(x)
  check_model(model)
  check_model_input(x)
  check_layers(layers)
  check_whole_numbers(heads, min = 1, null = TRUE)
  check_whole_numbers(queries, min = 1, null = TRUE)
  check_tokens(tokens)
  maps <- call_python(
    "attention_scores",
    model,
    as_model_input(x),
    as_layers(layers),
    heads = zero_based(heads),
    rows = zero_based(queries),
    doing = "collect the attention maps"
  )
  check_tokens_length(tokens, maps)
  new_attention_scores(
    lapply(maps, function(map) map$weights),
    data.frame(layer = vapply(maps, function(map) map$layer, "")),
    index = lapply(maps, function(map) {
      list(
        head = unlist(map$heads) + 1L,
        query = unlist(map$rows) + 1L,
        key = seq_len(dim(map$weights)[[4]]),
        sample = seq_len(dim(map$weights)[[1]])
      )
    }),
    tokens = tokens
  )
}

# One label for each key of at least one layer.
check_tokens_length <- function(tokens, maps, call = caller_env()) {
  sizes <- unique(vapply(maps, function(map) dim(map$weights)[[4]], 1L))
  if (!is.null(tokens) && !length(tokens) %in% sizes) {
    rule <- cli::format_inline("a character vector of length {.or {sizes}}")
    abort_argument("tokens", rule, tokens, call = call)
  }
}

# maps: arrays (sample, head, query, key); index: the numbers that the entries of each axis
# have in the model, kept when the object is subset.
new_attention_scores <- function(maps, layers, index, tokens) {
  names(maps) <- layers$layer
  structure(
    list(maps = maps, index = index, tokens = tokens),
    class = "attention_scores"
  )
}

is_scores <- function(x) {
  inherits(x, "attention_scores") &&
    is.list(x) &&
    length(x) > 0 &&
    all(vapply(unclass(x)$maps, is.array, NA))
}
