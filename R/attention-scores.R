#' Collect the attention maps of a model
#'
#' Runs a trained model on an input and collects what each attention layer attends:
#' the softmax weights of every head. The model stays as it is, and may hold our
#' layers or Keras's.
#'
#' For long inputs ask for a few queries: 16 rows of a 16,000 step context take
#' 16 x 16,000 numbers a head, not 16,000 x 16,000.
#'
#' @param model A Functional or Sequential Keras model.
#' @param x Input of the model: an R matrix or array (integers for tokens), a tensor,
#'   or a list of them for a model with several inputs.
#' @param layers Names of attention layers, or their numbers in order of call, from 1;
#'   `NULL` for all.
#' @param ... Not used.
#' @param heads,queries Numbers of heads and of query positions, from 1; `NULL` for
#'   all.
#' @param tokens Labels of the positions, the words of a text, say: a character
#'   vector of length S, used by `plot()`.
#'
#' @returns An `attention_scores` object. It has a method for
#' * `[`: `scores[layer, head, query, key, sample]`, by number or, for layers, name;
#' * `as.data.frame()`: a row per weight, with columns `layer`, `sample`, `head`,
#'   `query`, `key`, `weight`;
#' * `summary()`: mean entropy (in bits) and mean distance for each head;
#' * `plot()` and [ggplot2::autoplot()], see [plot.attention_scores()].
#'
#' `scores$maps` holds the arrays themselves, one per layer, of dim
#' (B, N, T, S): samples, heads, queries, keys. A row without any visible key is zero.
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

# One label for each key, of the layers that have these tokens for keys.
check_tokens_length <- function(tokens, maps, call = caller_env()) {
  sizes <- unique(vapply(maps, function(map) dim(map$weights)[[4]], 1L))
  if (!is.null(tokens) && !length(tokens) %in% sizes) {
    rule <- cli::format_inline("a character vector of length {.or {sizes}}")
    abort_argument("tokens", rule, tokens, call = call)
  }
}

# maps: arrays (sample, head, query, key); index: what the entries of each axis
# were in the model, kept when the object is cut.
new_attention_scores <- function(maps, layers, index, tokens) {
  names(maps) <- layers$layer
  structure(
    list(maps = maps, index = index, tokens = tokens),
    class = "attention_scores"
  )
}

#' @export
`[.attention_scores` <- function(x, layer, head, query, key, sample) {
  call <- rlang::current_env()
  chosen <- if (missing(layer)) {
    seq_along(x$maps)
  } else {
    match_positions(layer, length(x$maps), names(x$maps), "layer", call)
  }
  axes <- list(
    sample = if (!missing(sample)) sample,
    head = if (!missing(head)) head,
    query = if (!missing(query)) query,
    key = if (!missing(key)) key
  )
  x$maps <- x$maps[chosen]
  x$index <- x$index[chosen]
  for (i in seq_along(x$maps)) {
    x <- cut_map(x, i, axes, call)
  }
  x
}

cut_map <- function(x, i, axes, call) {
  map <- x$maps[[i]]
  for (axis in seq_along(axes)) {
    name <- names(axes)[[axis]]
    if (!is.null(axes[[axis]])) {
      size <- dim(map)[[axis]]
      at <- match_positions(axes[[axis]], size, NULL, name, call)
      map <- slice_axis(map, axis, at)
      x$index[[i]][[name]] <- x$index[[i]][[name]][at]
    }
  }
  x$maps[[i]] <- map
  x
}

slice_axis <- function(x, axis, at) {
  whole <- rep(list(TRUE), length(dim(x)))
  whole[[axis]] <- at
  do.call(`[`, c(list(x), whole, drop = FALSE))
}

# Positions as `[` of a vector takes them, but none may lie outside.
match_positions <- function(at, size, names, arg, call) {
  positions <- seq_len(size)
  names(positions) <- names
  plain <- is.atomic(at) && !is.object(at)
  found <- if (plain) tryCatch(positions[at], error = function(cnd) NA)
  if (length(found) == 0 || anyNA(found)) {
    rule <- paste0("of numbers from 1 to ", size)
    if (!is.null(names)) {
      rule <- paste0(rule, " or of ", paste0('"', names, '"', collapse = ", "))
    }
    abort_argument(arg, paste("a vector", rule), at, call = call)
  }
  unname(found)
}

#' @export
dim.attention_scores <- function(x) NULL

#' @export
length.attention_scores <- function(x) length(unclass(x)$maps)

#' @export
as.data.frame.attention_scores <- function(x, ...) {
  frames <- Map(map_frame, x$maps, x$index, names(x$maps))
  frame <- do.call(rbind, c(unname(frames), make.row.names = FALSE))
  frame$layer <- factor(frame$layer, unique(names(x$maps)))
  if (!is.null(x$tokens)) {
    frame$query_token <- x$tokens[frame$query]
    frame$key_token <- x$tokens[frame$key]
  }
  frame
}

map_frame <- function(map, index, layer) {
  grid <- expand.grid(
    index[c("sample", "head", "query", "key")],
    KEEP.OUT.ATTRS = FALSE
  )
  cbind(layer = layer, grid, weight = as.vector(map))
}

#' @export
summary.attention_scores <- function(object, ...) {
  frames <- Map(map_summary, object$maps, object$index, names(object$maps))
  frame <- do.call(rbind, c(unname(frames), make.row.names = FALSE))
  frame$layer <- factor(frame$layer, unique(names(object$maps)))
  frame
}

map_summary <- function(map, index, layer) {
  entropy <- row_entropy(map)
  distance <- row_distance(map, index)
  data.frame(
    layer = layer,
    head = index$head,
    entropy = apply(entropy, 2, mean),
    distance = apply(distance, 2, mean)
  )
}

# In bits: 0 for one key, log2(S) for all alike. (sample, head, query)
row_entropy <- function(map) {
  terms <- ifelse(map > 0, -map * log2(map), 0)
  apply(terms, 1:3, sum)
}

# How many positions away a query looks, on average.
row_distance <- function(map, index) {
  apart <- abs(outer(index$query, index$key, `-`))
  apply(map, 1:2, function(weights) rowSums(weights * apart)) |>
    array(dim(map)[c(3, 1, 2)]) |>
    aperm(c(2, 3, 1))
}

#' @export
print.attention_scores <- function(x, ...) {
  cat(format(x, ...), sep = "\n")
  invisible(x)
}

#' @export
format.attention_scores <- function(x, ...) {
  count <- length(x$maps)
  lines <- paste0(
    "<attention_scores> of ",
    count,
    if (count == 1) " layer" else " layers"
  )
  table <- summary(x)
  for (i in seq_along(x$maps)) {
    size <- dim(x$maps[[i]])
    entropy <- table$entropy[table$layer == names(x$maps)[[i]]]
    lines <- c(
      lines,
      sprintf(
        "%s: %d head%s, %d x %d (queries x keys), %d sample%s, entropy %.2f to %.2f bits",
        names(x$maps)[[i]],
        size[[2]],
        plural(size[[2]]),
        size[[3]],
        size[[4]],
        size[[1]],
        plural(size[[1]]),
        min(entropy),
        max(entropy)
      )
    )
  }
  if (!is.null(x$tokens)) {
    lines <- c(
      lines,
      paste0("tokens: ", shorten(paste(x$tokens, collapse = " "), 60))
    )
  }
  lines
}

plural <- function(n) if (n == 1) "" else "s"

shorten <- function(text, width) {
  if (nchar(text) <= width) text else paste0(substr(text, 1, width - 3), "...")
}
