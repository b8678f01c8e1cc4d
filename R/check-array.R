# Checkers of arrays and tensors; see R/check.R.

# An R array, or a tensor of Python. `axes`: how many axes (one or several
# numbers), `letters`: their names for the message, as "(B, T, D)".
check_array <- function(
  x,
  axes = NULL,
  letters = NULL,
  null = FALSE,
  hint = NULL,
  arg = caller_arg(x),
  call = caller_env()
) {
  rule <- array_rule(axes, letters, null)
  if (left_to_python(x, null, rule, arg, call)) {
    return(invisible(x))
  }
  if (!is_data_array(x) || lost_integer64(x)) {
    abort_argument(arg, rule, x, data_hint(x, arg) %||% hint, call)
  }
  if (!is.null(axes) && !axes_of(x) %in% axes) {
    abort_argument(arg, rule, x, hint, call)
  }
  check_no_na(x, arg = arg, call = call)
}

# The way from data frames and sequences to arrays.
data_hint <- function(x, arg) {
  if (is.data.frame(x)) {
    return(c(
      "Rows of several sequences: `as_sequences(data, id, time, vars)$x` is an array (B, T, D).",
      paste0("All rows as one matrix: `as.matrix(", arg, ")`.")
    ))
  }
  if (inherits(x, "sequences")) {
    paste0(
      "Its array is `",
      arg,
      "$x`, the mask of its padding `",
      arg,
      "$mask`."
    )
  }
}

array_rule <- function(axes, letters, null) {
  kind <- if (is.null(axes)) {
    "an array"
  } else {
    paste("an array with", paste(axes, collapse = " or "), "axes")
  }
  if (!is.null(letters)) {
    kind <- paste(kind, letters)
  }
  paste0(kind, or_null(null))
}

# TRUE where R has nothing to check: `x` is a tensor, which Python checks, or an allowed NULL.
left_to_python <- function(x, null, rule, arg, call) {
  if (is.null(x)) {
    return(null)
  }
  if (!is_python(x)) {
    return(FALSE)
  }
  check_alive(x, arg = arg, call = call)
  if (!is_array_like(x)) {
    abort_argument(arg, rule, x, call = call)
  }
  TRUE
}

# A Python object that saveRDS() wrote has no Python behind it when it is read.
check_alive <- function(x, arg = caller_arg(x), call = caller_env()) {
  if (is_python(x) && !is_alive(x)) {
    abort(
      "{.arg {arg}} is {describe_value(x)}.",
      hint = "Python objects end with their session. Save a model by `model$save(\"model.keras\")` and load that file.",
      arg = arg,
      call = call
    )
  }
  invisible(x)
}

# NA in an array of numbers, logicals or integers is an error; NaN is a number
# that a tensor can hold.
check_no_na <- function(
  x,
  hint = "Replace them with numbers.",
  arg = caller_arg(x),
  call = caller_env()
) {
  missing <- if (anyNA(x)) is.na(x) & !is.nan(x) else FALSE
  if (any(missing)) {
    first <- paste(arrayInd(which(missing)[[1]], dim_of(x)), collapse = ", ")
    abort(
      "{.arg {arg}} must not hold NA: found {sum(missing)}, the first at [{first}].",
      hint = hint,
      arg = arg,
      call = call
    )
  }
  invisible(x)
}
