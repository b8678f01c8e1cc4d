# Masks are logicals, or numbers that are 0 and 1. TRUE and 1 mean attend.
check_mask <- function(
  x,
  null = FALSE,
  arg = caller_arg(x),
  call = caller_env()
) {
  rule <- if (arg == "attention_mask") {
    "a logical array, TRUE where a query attends a key"
  } else {
    "a logical matrix, TRUE for tokens and FALSE for padding"
  }
  rule <- paste0(rule, or_null(null))
  if (left_to_python(x, null, rule, arg, call)) {
    return(invisible(x))
  }
  if (!is_numeric_array(x) || lost_integer64(x)) {
    abort_argument(arg, rule, x, mask_class_hint(x, arg), call)
  }
  if (axes_of(x) < 2) {
    hint <- if (are_lengths(x, arg)) lengths_hint(arg) else mask_hint(arg)
    abort_argument(arg, rule, x, hint, call)
  }
  check_no_na(x, "Replace them with TRUE or FALSE.", arg, call)
  other <- if (is.numeric(x)) x[!x %in% c(0, 1)]
  if (length(other) > 0) {
    hint <- if (arg == "attention_mask") {
      "To add numbers to the logits, use `attention_bias`."
    } else if (ncol(x) == 1 && are_lengths(x, arg)) {
      lengths_hint(arg)
    }
    abort(
      "{.arg {arg}} must hold TRUE and FALSE, or 1 and 0, not {.val {other[[1]]}}.",
      hint = hint,
      arg = arg,
      call = call
    )
  }
  warn_inverted(x, arg, call)
  invisible(x)
}

mask_class_hint <- function(x, arg) {
  if (is.data.frame(x)) {
    paste0("Convert it first: `as.matrix(", arg, ")`.")
  } else if (inherits(x, "table")) {
    paste0(
      "A table counts: say which counts are TRUE, as `unclass(",
      arg,
      ") > 0`."
    )
  }
}

# The lengths of sequences in place of a mask of their padding.
are_lengths <- function(x, arg) {
  arg != "attention_mask" &&
    is.numeric(x) &&
    length(x) > 0 &&
    all(is.finite(x) & x == trunc(x) & x >= 0) &&
    any(x > 1)
}

lengths_hint <- function(arg) {
  size <- if (arg == "query_mask") "T" else "S"
  paste0(
    "Lengths of sequences become a mask by `outer(lengths, seq_len(",
    size,
    "), \">=\")`."
  )
}

mask_hint <- function(arg) {
  if (arg == "attention_mask") {
    paste(
      "Its shape is (T, S), (B, T, S), (B, 1, T, S) or (B, N, T, S);",
      "`use_causal_mask = TRUE` makes a causal one."
    )
  } else {
    paste0(
      "It has a row for each sequence: `matrix(",
      arg,
      ", nrow = 1)` for a single one."
    )
  }
}

# In other software TRUE may mean padding, or masked out. Two patterns give such a mask away,
# which ours hardly ever have: padding first and one sequence that is all padding; or the future
# visible, and the past and the position itself not.
warn_inverted <- function(x, arg, call) {
  if (length(dim(x)) != 2 || length(x) == 0 || all(x == x[[1]])) {
    return(invisible())
  }
  x <- x == 1
  problem <- if (arg == "attention_mask") {
    is_future <- nrow(x) == ncol(x) && all(x == upper.tri(x))
    if (is_future) "masks out each position and its past, but not the future"
  } else {
    padded_left <- all(apply(x, 1, function(row) !is.unsorted(row)))
    empty <- which(!apply(x, 1, any))
    if (padded_left && length(empty) > 0) {
      paste("masks out every token of sequence", empty[[1]])
    }
  }
  if (!is.null(problem)) {
    warn_mask(arg, problem, call)
  }
}

warn_mask <- function(arg, problem, call) {
  rlang::warn(
    c(
      paste0("`", arg, "` ", problem, "."),
      i = paste0(
        "TRUE means attend, FALSE masks out: did you mean `!",
        arg,
        "`?"
      )
    ),
    class = "kerasattention_warning",
    call = call
  )
}
