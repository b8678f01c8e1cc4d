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

check_whole_number <- function(
  x,
  min = -Inf,
  max = .Machine$integer.max,
  null = FALSE,
  hint = NULL,
  arg = caller_arg(x),
  call = caller_env()
) {
  if (null && is.null(x)) {
    return(invisible())
  }
  if (!is_whole_number(x) || x < min || x > max) {
    rule <- paste0("a whole number", range_rule(min, max), or_null(null))
    abort_argument(arg, rule, x, hint %||% integer_hint(x), call)
  }
  invisible(x)
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
  if (null && is.null(x)) {
    return(invisible())
  }
  several <- (is_plain_number(x) || is_plain_list(x)) && axes_of(x) == 1
  good <- several &&
    length(x) > 0 &&
    all(vapply(as.list(x), is_whole_number, NA)) &&
    all(unlist(x) >= min & unlist(x) <= max)
  if (!good) {
    rule <- paste0("whole numbers", range_rule(min, max), or_null(null))
    abort_argument(arg, rule, x, hint %||% integer_hint(x), call)
  }
  invisible(x)
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
  if (null && is.null(x)) {
    return(invisible())
  }
  good <- is_number(x) && x >= min && x <= max && x > above && x < below
  if (!good) {
    range <- range_rule(min, max, above, below)
    abort_argument(arg, paste0("a number", range, or_null(null)), x, hint, call)
  }
  invisible(x)
}

check_flag <- function(
  x,
  null = FALSE,
  hint = NULL,
  arg = caller_arg(x),
  call = caller_env()
) {
  if (null && is.null(x)) {
    return(invisible())
  }
  if (!is_flag(x)) {
    rule <- if (null) "TRUE, FALSE or NULL" else "TRUE or FALSE"
    abort_argument(arg, rule, x, hint, call)
  }
  invisible(x)
}

check_string <- function(
  x,
  null = FALSE,
  hint = NULL,
  arg = caller_arg(x),
  call = caller_env()
) {
  if (null && is.null(x)) {
    return(invisible())
  }
  if (!is_string(x)) {
    abort_argument(arg, paste0("one string", or_null(null)), x, hint, call)
  }
  invisible(x)
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
  if (is.data.frame(x)) {
    hint <- "Turn it into an array first: `data.matrix()`, then `array()`."
    abort_argument(arg, rule, x, hint, call)
  }
  if (!is_numeric_array(x)) {
    abort_argument(arg, rule, x, hint, call)
  }
  if (!is.null(axes) && !axes_of(x) %in% axes) {
    abort_argument(arg, rule, x, hint, call)
  }
  check_no_na(x, arg = arg, call = call)
}

is_numeric_array <- function(x) {
  (is.numeric(x) || is.logical(x)) && !is.object(x)
}

# Whether Python is to check `x`: a NULL that is allowed, or a tensor.
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

# What Python made is gone with the session, whatever of it `saveRDS()` kept.
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
check_no_na <- function(x, arg = caller_arg(x), call = caller_env()) {
  missing <- if (anyNA(x)) is.na(x) & !is.nan(x) else FALSE
  if (any(missing)) {
    first <- paste(arrayInd(which(missing)[[1]], dim_of(x)), collapse = ", ")
    abort(
      "{.arg {arg}} must not hold NA: found {sum(missing)}, the first at [{first}].",
      hint = "Replace them, or hide their positions with a mask.",
      arg = arg,
      call = call
    )
  }
  invisible(x)
}

# Elements of `...` must have names, and names that are known; a slip of the pen
# is answered with the nearest of them, or of `near`, names known elsewhere.
check_dots <- function(dots, known, near = NULL, call = caller_env()) {
  if (length(dots) == 0) {
    return(invisible(dots))
  }
  names <- names2(dots)
  if (any(names == "")) {
    value <- dots[[which(names == "")[[1]]]]
    abort(
      "Arguments after the last positional one must have names: got {describe_value(value)} without one.",
      hint = paste0(
        "Known names: ",
        paste0("`", known, "`", collapse = ", "),
        "."
      ),
      call = call
    )
  }
  for (name in setdiff(names, known)) {
    abort_unknown(name, dots[[name]], c(known, near), call)
  }
  twice <- names[duplicated(names)]
  if (length(twice) > 0) {
    abort("{.arg {twice[[1]]}} is given twice.", arg = twice[[1]], call = call)
  }
  invisible(dots)
}

abort_unknown <- function(name, value, known, call) {
  near <- nearest_name(name, known)
  abort(
    "{.arg {name}} is not an argument of this function: got {describe_value(value)}.",
    hint = if (length(near) > 0) paste0("Did you mean `", near, "`?"),
    arg = name,
    call = call
  )
}

# A known name that contains the given one, or is a few letters away from it.
nearest_name <- function(name, known) {
  within <- known[grepl(name, known, fixed = TRUE)]
  if (length(within) > 0 && nchar(name) > 2) {
    return(within[[1]])
  }
  if (length(known) == 0) {
    return(NULL)
  }
  distance <- utils::adist(name, known, ignore.case = TRUE)[1, ]
  if (min(distance) > max(2, nchar(name) / 4)) {
    return(NULL)
  }
  known[[which.min(distance)]]
}

# Rules in words --------------------------------------------------------------

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

# R's integers, and those of tensors of ids, have 32 bits.
integer_hint <- function(x) {
  limit <- .Machine$integer.max
  if (is_plain_number(x) && any(is.finite(x) & x > limit)) {
    paste0("Integers have 32 bits: ", limit, " is the greatest.")
  }
}

or_null <- function(null) if (null) ", or NULL" else ""

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

# R's vectors have one axis.
dim_of <- function(x) if (is.null(dim(x))) length(x) else dim(x)

axes_of <- function(x) length(dim_of(x))
