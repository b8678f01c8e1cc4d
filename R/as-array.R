# as.array() for tensors and variables, for sessions without keras3. The method is registered
# for the class of all Python objects. The methods of keras3, tensorflow and reticulate are
# registered for more specific classes: R calls those first, in whatever order the packages
# were loaded.

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

# reticulate cannot convert NumPy's bfloat16.
tensor_to_r <- function(x) {
  keras <- reticulate::import("keras", convert = FALSE)
  value <- keras$ops$convert_to_numpy(x)
  if (reticulate::py_to_r(value$dtype$name) == "bfloat16") {
    value <- value$astype("float32")
  }
  reticulate::py_to_r(value)
}
