# TRUE / 1 means attend: logicals, or numbers that are 0 and 1.
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
  if (!is_numeric_array(x)) {
    abort_argument(arg, rule, x, call = call)
  }
  if (axes_of(x) < 2) {
    hint <- mask_hint(arg)
    abort_argument(arg, rule, x, hint, call)
  }
  check_no_na(x, arg = arg, call = call)
  other <- if (is.numeric(x)) x[!x %in% c(0, 1)]
  if (length(other) > 0) {
    hint <- if (arg == "attention_mask") {
      "To add numbers to the logits, use `attention_bias`."
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

# Elsewhere TRUE may mean padding, or hidden. Such a mask has a look that one of ours
# hardly ever has: padding first and one sequence that is nothing but padding; or the
# future seen, and the past and the position itself not.
warn_inverted <- function(x, arg, call) {
  if (length(dim(x)) != 2 || length(x) == 0 || all(x == x[[1]])) {
    return(invisible())
  }
  x <- x == 1
  hides <- if (arg == "attention_mask") {
    is_future <- nrow(x) == ncol(x) && all(x == upper.tri(x))
    if (is_future) "hides each position and its past, and shows the future"
  } else {
    padded_left <- all(apply(x, 1, function(row) !is.unsorted(row)))
    empty <- which(!apply(x, 1, any))
    if (padded_left && length(empty) > 0) {
      paste("hides every token of sequence", empty[[1]])
    }
  }
  if (!is.null(hides)) {
    warn_mask(arg, hides, call)
  }
}

warn_mask <- function(arg, hides, call) {
  rlang::warn(
    c(
      paste0("`", arg, "` ", hides, "."),
      i = paste0("TRUE means attend, FALSE hides: did you mean `!", arg, "`?")
    ),
    class = "kerasattention_warning",
    call = call
  )
}
