# Checkers of arguments. How to use them in an exported function:
#
#   f <- function(window, causal = FALSE, x) {
#     check_whole_number(window, min = 1)
#     check_flag(causal)
#     check_array(x, axes = 3)
#     ...                       # from here on the values are trusted
#
# - A checker returns its value invisibly, unchanged, or throws a
#   `kerasattention_error` that names the argument, the rule and the value.
# - They never start Python. Tensors of Python pass check_array() and check_mask():
#   Keras checks them. Objects of another session pass nothing: left_to_python().
# - `null = TRUE` lets NULL pass. NA never passes.
# - `hint` is one or several lines of plain text, the way out.
# - Call a checker from a helper with `arg =` (the name that the user knows) and
#   `call =` (the frame of the exported function); in the exported function itself
#   both are found without help.
# - A required argument: check_required(x) first; it gives the missing argument
#   an error of our class.
# - A rule of your own: abort_argument(arg, rule, value, hint, call) in R/errors.R
#   writes the message "`arg` must be RULE, not VALUE." for you.
#
# Here are the checkers of flags, strings and choices; R/check-numbers.R, R/check-array.R and
# R/check-dots.R hold those of numbers, of arrays and of `...`.

check_required <- function(
  x,
  hint = NULL,
  arg = caller_arg(x),
  call = caller_env()
) {
  if (missing(x)) {
    abort("{.arg {arg}} is required.", hint = hint, arg = arg, call = call)
  }
  invisible()
}

check_flag <- function(
  x,
  null = FALSE,
  hint = NULL,
  arg = caller_arg(x),
  call = caller_env()
) {
  rule <- if (null) "TRUE, FALSE or NULL" else "TRUE or FALSE"
  check_rule(x, is_flag(x), rule, null, hint, arg, call)
}

check_string <- function(
  x,
  null = FALSE,
  hint = NULL,
  arg = caller_arg(x),
  call = caller_env()
) {
  rule <- paste0("one string", or_null(null))
  check_rule(x, is_string(x), rule, null, hint, arg, call)
}

# One of `choices`; where `x` is still all the choices (a default), the first.
check_choice <- function(
  x,
  choices,
  hint = NULL,
  arg = caller_arg(x),
  call = caller_env()
) {
  if (identical(x, choices)) {
    return(invisible(choices[[1]]))
  }
  if (!is_string(x) || !x %in% choices) {
    quoted <- paste0('"', choices, '"')
    rule <- cli::format_inline("{.or {quoted}}")
    abort_argument(arg, rule, x, hint, call)
  }
  invisible(x)
}

# Some of `choices`.
check_choices <- function(
  x,
  choices,
  arg = caller_arg(x),
  call = caller_env()
) {
  if (!is_text(x) || length(x) == 0) {
    quoted <- paste0('"', choices, '"')
    rule <- cli::format_inline("one or several of {.or {quoted}}")
    abort_argument(arg, rule, x, call = call)
  }
  for (choice in x) {
    check_choice(choice, choices, arg = arg, call = call)
  }
  invisible(x)
}

# An error unless the rule holds for `x`, or `x` is NULL and may be.
check_rule <- function(x, holds, rule, null, hint, arg, call) {
  if (!holds && !(null && is.null(x))) {
    abort_argument(arg, rule, x, hint, call)
  }
  invisible(x)
}

or_null <- function(null) if (null) ", or NULL" else ""
