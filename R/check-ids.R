# Segments and spans: a whole number for each token.
check_ids <- function(
  x,
  null = FALSE,
  arg = caller_arg(x),
  call = caller_env()
) {
  rule <- paste0(
    "a matrix (B, T) of whole numbers of at least 0",
    or_null(null)
  )
  if (left_to_python(x, null, rule, arg, call)) {
    return(invisible(x))
  }
  if (!is_plain_number(x) || axes_of(x) != 2) {
    hint <- if (is_plain_number(x) && axes_of(x) == 1) {
      paste0("For a single sequence: `matrix(", arg, ", nrow = 1)`.")
    }
    abort_argument(arg, rule, x, hint, call)
  }
  check_no_na(x, "Replace them with whole numbers of at least 0.", arg, call)
  check_id_values(x, rule, arg, call)
  invisible(x)
}

# Ids are integers of 32 bits in R and in Python: greater ones would wrap around.
check_id_values <- function(x, rule, arg, call) {
  good <- is.finite(x) & x == trunc(x) & x >= 0
  if (!all(good)) {
    abort_argument(arg, rule, x[!good][[1]], call = call)
  }
  limit <- .Machine$integer.max
  if (any(x > limit)) {
    abort(
      "{.arg {arg}} must hold integers of 32 bits, up to {limit}, not {format(x[x > limit][[1]], digits = 15)}.",
      arg = arg,
      call = call
    )
  }
}
