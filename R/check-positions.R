# The call argument `positions`: a number for each token, whole or not, a time, or several numbers.

check_positions <- function(
  x,
  null = FALSE,
  arg = caller_arg(x),
  call = caller_env()
) {
  rule <- paste0(
    "a matrix (B, T) or an array (B, T, axes) of numbers, or times",
    or_null(null)
  )
  if (left_to_python(x, null, rule, arg, call)) {
    return(invisible(x))
  }
  if (is_times(x)) {
    check_times(x, rule, arg, call)
    return(invisible(x))
  }
  if (!is_plain_number(x) || lost_integer64(x) || !axes_of(x) %in% 2:3) {
    hint <- if (is_plain_number(x) && axes_of(x) == 1) {
      paste0("For a single sequence: `matrix(", arg, ", nrow = 1)`.")
    } else if (inherits(x, "difftime")) {
      paste0("As days: `as.numeric(", arg, ", units = \"days\")`.")
    }
    abort_argument(arg, rule, x, hint, call)
  }
  check_no_na(x, "Replace them with numbers.", arg, call)
  if (!all(is.finite(x))) {
    abort_argument(arg, rule, x[!is.finite(x)][[1]], call = call)
  }
  limit <- .Machine$integer.max
  if (all_whole(x) && any(abs(x) > limit)) {
    abort(
      "{.arg {arg}} must hold whole numbers of 32 bits, up to {limit}, not {format(x[abs(x) > limit][[1]], digits = 15)}.",
      hint = "Subtract the earliest position of each sequence.",
      arg = arg,
      call = call
    )
  }
  invisible(x)
}

# Times are a vector, one sequence, or a matrix: `dim<-` keeps their class, `matrix()` does not.
check_times <- function(x, rule, arg, call) {
  x <- days_array(x)
  if (!axes_of(x) %in% 1:2) {
    abort_argument(arg, rule, x, call = call)
  }
  check_no_na(x, "Replace them with times.", arg, call)
  if (!all(is.finite(x))) {
    rule <- "times that are finite"
    abort_argument(arg, rule, x[!is.finite(x)][[1]], call = call)
  }
}

# Days since 1970, with the axes of the times.
days_array <- function(x) {
  if (inherits(x, "POSIXlt")) {
    x <- as.POSIXct(x)
  }
  array(as_days(x), dim_of(x))
}

all_whole <- function(x) all(x == trunc(x))

# A matrix (B, T) of numbers; times become days since the earliest of each row: of 20,000 days
# since 1970, numbers of 32 bits could not tell two minutes apart.
as_numbers <- function(positions) {
  if (is.null(positions) || is_python(positions) || !is_times(positions)) {
    return(positions)
  }
  days <- days_array(positions)
  if (axes_of(days) < 2) {
    days <- matrix(days, nrow = 1)
  }
  if (ncol(days) == 0) {
    return(days)
  }
  days - apply(days, 1, min)
}

# Whole numbers as integers of 32 bits, others as numbers of 64 bits, of which the layer
# keeps as many digits as it can.
as_positions <- function(x) {
  x <- as_numbers(x)
  if (is.null(x) || is_python(x) || all_whole(x)) {
    as_ids(x)
  } else {
    as_tensor(x, "float64")
  }
}
