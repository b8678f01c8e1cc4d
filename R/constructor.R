# A value that Python builds later: the name of a class of our module and the
# arguments of its constructor. A `shared` one is built once and is then the same
# object wherever it is used.
recipe <- function(python_class, ..., class = character(), shared = FALSE) {
  structure(
    list(
      python_class = python_class,
      args = list(...),
      made = if (shared) new.env(parent = emptyenv())
    ),
    class = c(class, "kerasattention_recipe")
  )
}

is_recipe <- function(x) inherits(x, "kerasattention_recipe")

as_python <- function(x, call = caller_env()) {
  if (!is_recipe(x)) {
    return(x)
  }
  if (is_alive(x$made$object)) {
    return(x$made$object)
  }
  module <- python_module(call)
  doing <- paste("make", x$python_class)
  object <- with_python(
    do.call(module[[x$python_class]], x$args),
    doing,
    call
  )
  if (!is.null(x$made)) {
    x$made$object <- object
  }
  object
}
