# as.array() on tensors and variables, for a session without keras3. The method
# stands on the class of all Python objects, behind every more special one: those
# of keras3, of the R package tensorflow and of reticulate go before it, in
# whichever order the packages are loaded.

register_as_array <- function() {
  theirs <- utils::getS3method(
    "as.array",
    "python.builtin.object",
    optional = TRUE,
    envir = asNamespace("reticulate")
  )
  if (is.null(theirs)) {
    method <- as_array_python
    registerS3method("as.array", "python.builtin.object", method, baseenv())
  }
}

as_array_python <- function(x, ...) {
  if (!is_tensor(x)) {
    return(NextMethod())
  }
  value <- with_python(tensor_to_r(x), "turn a tensor into an R array")
  array(value, dim_of(value))
}

# bfloat16 has no NumPy type that reticulate knows.
tensor_to_r <- function(x) {
  keras <- reticulate::import("keras", convert = FALSE)
  value <- keras$ops$convert_to_numpy(x)
  if (reticulate::py_to_r(value$dtype$name) == "bfloat16") {
    value <- value$astype("float32")
  }
  reticulate::py_to_r(value)
}
