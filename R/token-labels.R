# Labels of key positions: the words of each sample.

check_tokens <- function(
  tokens,
  arg = caller_arg(tokens),
  call = caller_env()
) {
  parts <- if (is_plain_list(tokens)) tokens else list(tokens)
  good <- length(parts) > 0 &&
    all(vapply(parts, function(x) is_text(x) && !anyNA(x), NA)) &&
    (!is_plain_list(tokens) || all(vapply(parts, axes_of, 1L) == 1))
  if (!is.null(tokens) && (!good || axes_of(tokens) > 2)) {
    rule <- paste(
      "words without NA: a character vector for one sample, a list of",
      "vectors or a matrix (B, S) for several, or NULL"
    )
    hint <- if (is.factor(tokens)) {
      paste0("Convert it first: `as.character(", arg, ")`.")
    }
    abort_argument(arg, rule, tokens, hint, call)
  }
  invisible(tokens)
}

# A matrix (B, S) of labels for maps of the sizes (B, N, T, S). Labels of fewer tokens than a
# sample has are refused: they could stand at its start or at its end.
as_labels <- function(tokens, sizes, arg = "tokens", call = caller_env()) {
  if (is.null(tokens)) {
    return(NULL)
  }
  samples <- sizes[[1]][[1]]
  lengths <- unique(vapply(sizes, function(size) as.integer(size[[4]]), 1L))
  labels <- if (is.matrix(tokens)) {
    lapply(seq_len(nrow(tokens)), function(row) tokens[row, ])
  } else if (is.list(tokens)) {
    unname(tokens)
  } else {
    list(as.vector(tokens))
  }
  if (length(labels) != samples) {
    abort(
      "{.arg {arg}} must have labels for each of the {samples} sample{?s} of {.arg x}, not for {length(labels)}.",
      hint = samples_hint(tokens, arg),
      arg = arg,
      call = call
    )
  }
  for (i in seq_along(labels)) {
    size <- length(labels[[i]])
    if (!size %in% lengths || size != length(labels[[1]])) {
      expected <- if (i == 1) lengths else length(labels[[1]])
      abort(
        "{.arg {arg}} must have {.or {expected}} labels for each sample, one for each key, not {size} for sample {i}.",
        hint = paste(
          "Label padding too, where it stands:",
          '`c(words, rep("", S - length(words)))`.'
        ),
        arg = arg,
        call = call
      )
    }
  }
  do.call(rbind, labels)
}

samples_hint <- function(tokens, arg) {
  if (!is.list(tokens) && !is.matrix(tokens)) {
    paste0(
      "A vector has the words of one sample. The same labels for all: `matrix(",
      arg,
      ", B, S, byrow = TRUE)`."
    )
  }
}

# The labels of keys, or of queries, of a map: those that `positions` of `samples` have, NA where
# the labels are not of that axis.
labels_at <- function(labels, index, axis, samples, positions) {
  if (is.null(labels) || !has_labels(index, axis)) {
    return(rep(NA_character_, length(positions)))
  }
  labels[cbind(samples, positions)]
}

has_labels <- function(index, axis) {
  index$labelled && (axis == "key" || index$self_attention)
}
