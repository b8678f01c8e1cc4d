# Checkers of numbers; see R/check.R.

check_whole_number <- function(
  x,
  min = -Inf,
  max = .Machine$integer.max,
  null = FALSE,
  hint = NULL,
  arg = caller_arg(x),
  call = caller_env()
) {
  good <- is_whole_number(x) && x >= min && x <= max
  rule <- paste0("a whole number", range_rule(min, max), or_null(null))
  check_rule(x, good, rule, null, hint %||% integer_hint(x), arg, call)
}

# A vector, or a list, of whole numbers.
check_whole_numbers <- function(
  x,
  min = -Inf,
  max = .Machine$integer.max,
  null = FALSE,
  hint = NULL,
  arg = caller_arg(x),
  call = caller_env()
) {
  several <- (is_plain_number(x) || is_plain_list(x)) && axes_of(x) == 1
  good <- several &&
    length(x) > 0 &&
    all(vapply(as.list(x), is_whole_number, NA)) &&
    all(unlist(x) >= min & unlist(x) <= max)
  rule <- paste0("whole numbers", range_rule(min, max), or_null(null))
  check_rule(x, good, rule, null, hint %||% integer_hint(x), arg, call)
}

# `above` and `below` exclude the bound itself.
check_number <- function(
  x,
  min = -Inf,
  max = Inf,
  above = -Inf,
  below = Inf,
  null = FALSE,
  hint = NULL,
  arg = caller_arg(x),
  call = caller_env()
) {
  good <- is_number(x) && x >= min && x <= max && x > above && x < below
  range <- range_rule(min, max, above, below)
  rule <- paste0("a number", range, or_null(null))
  check_rule(x, good, rule, null, hint, arg, call)
}

range_rule <- function(min, max, above = -Inf, below = Inf) {
  high <- max < .Machine$integer.max
  parts <- c(
    if (min > -Inf && high) paste("from", min, "to", max),
    if (min > -Inf && !high) paste("of at least", min),
    if (min == -Inf && high) paste("of at most", max),
    if (above > -Inf) paste("above", above),
    if (below < Inf) paste("below", below)
  )
  if (length(parts) == 0) "" else paste0(" ", paste(parts, collapse = ", "))
}

# R's integers and tensors of ids have 32 bits.
integer_hint <- function(x) {
  limit <- .Machine$integer.max
  if (is_plain_number(x) && any(is.finite(x) & x > limit)) {
    paste0("Integers have 32 bits: ", limit, " is the greatest.")
  }
}
