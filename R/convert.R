# From R's types to Python's, after the checks. How to use it in a wrapper:
#
#   f <- function(model, x, mask = NULL, top_k = NULL) {
#     check_array(x, axes = 3)                  # R/check-array.R: no Python yet
#     check_whole_number(top_k, min = 1, null = TRUE)
#     call_python("f", model, as_tensor(x), mask = as_mask(mask),
#                 top_k = as_int(top_k), doing = "do f")
#   }
#
# - NULL stays NULL, which is None in Python. Python objects are not changed.
# - as_int(), as_ints() give Python int and tuple; reticulate makes a float of
#   every R double, which Keras refuses as a size.
# - as_tensor(), as_mask(), as_ids() give NumPy arrays of float32, bool and int32
#   with R's axes in R's order; Keras makes backend tensors of them.
# - as_keras_function() (R/r-functions.R) makes an initializer, regularizer or constraint of
#   an R function; as_python() (R/constructor.R) runs a constructor.
# - call_python("f", ...) (R/python.R) calls kerasattention.f in Python and turns its errors
#   into ours; python_module() is the module itself.

as_int <- function(x) if (is_python(x) || is.null(x)) x else as.integer(x)

as_ints <- function(x) {
  if (is_python(x) || is.null(x)) {
    return(x)
  }
  reticulate::tuple(as.list(as.integer(unlist(x))))
}

# A seed from R's random numbers, which set.seed() governs.
draw_seed <- function() sample.int(.Machine$integer.max, 1)

as_tensor <- function(x, dtype = "float32") as_numpy(x, dtype)

as_mask <- function(x) as_numpy(x, "bool")

# R's integers are int32 already, so that no NumPy function is called.
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
