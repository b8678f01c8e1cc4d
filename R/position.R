# Objects for the argument `position` of the layers, made by the position_*() functions.

new_position <- function(class, python_class, ..., shared = FALSE) {
  class <- c(class, "kerasattention_position")
  new_constructor(python_class, ..., class = class, shared = shared)
}

check_position <- function(x, arg = caller_arg(x), call = caller_env()) {
  check_alive(x, arg = arg, call = call)
  ours <- inherits(x, "kerasattention_position") &&
    is.list(x) &&
    is_string(x$python_class)
  if (is.null(x) || is_python(x) || ours) {
    return(invisible(x))
  }
  hint <- if (is.function(x)) "Call the function, as in `position_rotary()`."
  abort_argument(arg, "a `position_*()` object, or NULL", x, hint, call)
}

#' @export
format.kerasattention_position <- function(x, ...) {
  args <- Filter(Negate(is.null), x$args)
  paste0(class(x)[[1]], "(", format_arguments(args), ")")
}

#' @export
print.kerasattention_position <- function(x, ...) {
  cat("<", format(x), ">\n", sep = "")
  invisible(x)
}

# The arguments as R code.
format_arguments <- function(args) {
  if (length(args) == 0) {
    return("")
  }
  values <- vapply(args, format_argument, "")
  paste(names(args), "=", values, collapse = ", ")
}

format_argument <- function(x) {
  if (is.list(x)) {
    return(paste0("list(", format_arguments(x), ")"))
  }
  if (length(x) > 1) {
    each <- vapply(x, format_argument, "")
    return(paste0("c(", paste(each, collapse = ", "), ")"))
  }
  if (is.numeric(x)) {
    return(format(x, digits = 15, scientific = FALSE, trim = TRUE))
  }
  deparse1(x)
}
