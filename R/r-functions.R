# R functions as initializers, regularizers and constraints. Keras needs objects that it can
# copy and save: their classes are in Python, in _bridge.py. Here the R function is wrapped, so
# that its arguments and its result are those that R users expect.

# An initializer, regularizer or constraint: a name, an object of Keras, its config
# as a list, or an R function.
check_keras_object <- function(
  x,
  kind,
  null = FALSE,
  arg = caller_arg(x),
  call = caller_env()
) {
  check_alive(x, arg = arg, call = call)
  config <- is_plain_list(x) && !is.null(names(x)) && is_convertible(x)
  named <- is_string(x) && nzchar(x)
  if (null && is.null(x) || named || config || is_python(x)) {
    return(invisible(x))
  }
  if (!is.function(x)) {
    article <- if (kind == "initializer") "an" else "a"
    rule <- paste0("a name, ", article, " ", kind, " object or an R function")
    abort_argument(arg, paste0(rule, or_null(null)), x, call = call)
  }
  if (length(formals(args(x))) == 0 && !is_generator(x)) {
    takes <- if (kind == "initializer") "the shape" else "a tensor"
    abort(
      "{.arg {arg}} must take {takes} as its first argument; {.code {function_name(x)}} takes none.",
      arg = arg,
      call = call
    )
  }
  invisible(x)
}

# Keras's error about an unknown name does not say which argument has it.
check_keras_name <- function(x, arg, call) {
  kind <- sub("^.*_", "", arg)
  if (!is_string(x) || x %in% c("glorot_uniform", "zeros")) {
    return(invisible(x))
  }
  module <- reticulate::import("keras")[[paste0(kind, "s")]]
  known <- tryCatch(!is.null(module$get(x)), error = function(cnd) FALSE)
  if (!known) {
    rule <- paste0("the name of one of Keras's ", kind, "s")
    near <- nearest_name(x, setdiff(names(module), c("get", "serialize")))
    hint <- if (length(near) > 0) paste0("Did you mean \"", near, "\"?")
    abort_argument(arg, rule, x, hint, call)
  }
  invisible(x)
}

# `argument`: "kernel_initializer", "bias_constraint" and so on.
as_keras_function <- function(x, argument) {
  if (is_python(x) || !is.function(x)) {
    return(x)
  }
  if (is_generator(x)) {
    return(x())
  }
  kind <- sub("^.*_", "", argument)
  wrapped <- switch(
    kind,
    initializer = wrap_initializer(x, argument),
    wrap_tensor_function(x, argument)
  )
  bridge <- python_module()[["_bridge"]]
  bridge$keras_function(kind, argument, wrapped, function_name(x))
}

# A function of keras3 that makes the object, such as `regularizer_l2` without
# parentheses, or a class made with `keras3::Constraint()`.
is_generator <- function(x) {
  env <- environment(x)
  !is.null(env) &&
    (environmentName(env) == "keras3" ||
      exists("__class__", envir = env, inherits = FALSE))
}

# `f` gets the shape as an integer vector, and the dtype if it takes one.
wrap_initializer <- function(f, argument) {
  takes <- names(formals(args(f)))
  gets_dtype <- any(c("dtype", "...") %in% takes)
  function(shape, dtype) {
    shape <- as.integer(unlist(shape))
    value <- if (gets_dtype) f(shape, dtype = dtype) else f(shape)
    as_result(value, argument)
  }
}

wrap_tensor_function <- function(f, argument) {
  force(f)
  function(x) as_result(f(x), argument)
}

as_result <- function(value, argument) {
  if (is_python(value)) {
    return(value)
  }
  must <- "The R function given as {.arg {argument}} must return a tensor or numbers"
  if (!is.numeric(value)) {
    abort(
      paste0(must, ", not {describe_value(value)}."),
      arg = argument,
      call = NULL
    )
  }
  if (anyNA(value)) {
    abort(paste0(must, " without NA."), arg = argument, call = NULL)
  }
  as_tensor(value, "float64")
}

# The name of a function in messages about a model that was saved with it.
function_name <- function(f) {
  text <- deparse(f, width.cutoff = 60L)
  if (length(text) > 1) paste(text[[1]], "...") else text
}
