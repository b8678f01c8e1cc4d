# From R's types to Python's, after the checks. How to use it in a wrapper:
#
#   f <- function(model, x, mask = NULL, top_k = NULL) {
#     check_array(x, axes = 3)                  # R/check.R: no Python yet
#     check_whole_number(top_k, min = 1, null = TRUE)
#     call_python("f", model, as_tensor(x), mask = as_mask(mask),
#                 top_k = as_int(top_k), doing = "do f")
#   }
#
# - NULL stays NULL, which is None in Python. What is already a Python object
#   passes unchanged.
# - as_int(), as_ints() give Python int and tuple; reticulate makes a float of
#   every R double, which Keras refuses as a size.
# - as_tensor(), as_mask(), as_ids() give NumPy arrays of float32, bool and int32
#   with R's axes in R's order; Keras makes backend tensors of them.
# - as_keras_function() makes an initializer, regularizer or constraint of an R
#   function.
# - A value that is described in R and built in Python (a position, say) is a
#   recipe: recipe("RotaryPosition", theta = 10000) is made without Python,
#   as_python() builds it when the time has come.
# - call_python("f", ...) calls kerasattention.f in Python and turns its errors
#   into ours; python_module() is the module itself.

as_int <- function(x) if (is_python(x) || is.null(x)) x else as.integer(x)

as_ints <- function(x) {
  if (is_python(x) || is.null(x)) {
    return(x)
  }
  reticulate::tuple(as.list(as.integer(unlist(x))))
}

as_tensor <- function(x, dtype = "float32") as_numpy(x, dtype)

as_mask <- function(x) as_numpy(x, "bool")

# R's integers are int32 already: no NumPy function needs to be called.
as_ids <- function(x) {
  if (is_python(x) || is.null(x)) {
    return(x)
  }
  x <- array(unname(x), dim_of(x))
  storage.mode(x) <- "integer"
  reticulate::r_to_py(x)
}

as_numpy <- function(x, dtype) {
  if (is_python(x) || is.null(x)) {
    return(x)
  }
  x <- unname(x)
  reticulate::np_array(array(x, dim_of(x)), dtype)
}

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
