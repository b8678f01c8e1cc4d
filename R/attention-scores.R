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
#' @param tokens Labels of the key positions, for instance the words of a text, for `plot()`
#'   and `as.data.frame()`: for one sample a character vector of length S, for several a
#'   list with a vector for each sample, or a matrix (B, S). Layers with another S have no
#'   labels; queries have labels in self-attention.
#'
#' @returns An `attention_scores` object. It has methods for
#' * `[`: `scores[layer, head, query, key, sample]`, by number; layers also by name;
#' * `[[`: the array (B, N, T, S) of one layer, by number or name;
#' * `names()` and `length()`: the names and the number of the layers; `head()` and `tail()`:
#'   the first or last layers; `as.list()`: the arrays of all;
#' * `as.array()`: an array (L, B, N, T, S) of layers of the same sizes;
#' * `as.data.frame()`: a row for each weight, with the columns `layer`, `sample`, `head`,
#'   `query`, `key`, `weight`, and with `tokens` also `query_token` and `key_token`;
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
  check_input_axes(x, model)
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
  labels <- as_labels(tokens, lapply(maps, function(map) dim(map$weights)))
  new_attention_scores(
    lapply(maps, function(map) map$weights),
    data.frame(layer = vapply(maps, function(map) map$layer, "")),
    index = lapply(maps, map_index, labels),
    tokens = labels
  )
}

# The numbers that the entries of each axis have in the model, and whether the labels are
# those of its keys and queries.
map_index <- function(map, labels) {
  size <- dim(map$weights)
  list(
    head = unlist(map$heads) + 1L,
    query = unlist(map$rows) + 1L,
    key = seq_len(size[[4]]),
    sample = seq_len(size[[1]]),
    self_attention = map$self_attention,
    labelled = !is.null(labels) && ncol(labels) == size[[4]]
  )
}

# maps: arrays (sample, head, query, key); index: as map_index() makes it, kept when the object
# is subset; tokens: a matrix (B, S) of labels, or NULL.
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
