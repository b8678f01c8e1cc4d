# A call of a Python constructor that is made in R, without Python, and run when a layer needs
# the object: the name of a class of our module, and the arguments. A `shared` one is run once;
# all layers that use it get the same object.
new_constructor <- function(
  python_class,
  ...,
  class = character(),
  shared = FALSE
) {
  structure(
    list(
      python_class = python_class,
      args = list(...),
      made = if (shared) new.env(parent = emptyenv())
    ),
    class = c(class, "kerasattention_constructor")
  )
}

is_constructor <- function(x) inherits(x, "kerasattention_constructor")

as_python <- function(x, call = caller_env()) {
  if (!is_constructor(x)) {
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
