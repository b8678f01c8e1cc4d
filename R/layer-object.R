# A layer in R: the Python object, which reticulate wraps in a function that we
# supply. Its arguments are those of Keras's call, and what R passes is converted
# as in the pipe. The methods stand on our own classes, so that keras3's, which
# stand on Keras's Layer, stay as they are for every other layer.

# Keras has just been loaded, by whomever: load our module too, so that saved
# models with our layers can be read. An error in here would look like an error of
# Keras itself, so there is none; it comes at the first use of a layer.
on_keras_load <- function() {
  tryCatch(python_module(), error = function(cnd) NULL)
}

on_module_load <- function() {
  module <- reticulate::import("kerasattention")
  for (name in c("GroupQueryAttention", "MultiHeadAttention")) {
    layer <- module[[name]]
    class <- paste0(layer$`__module__`, ".", layer$`__name__`)
    registerS3method(
      "py_to_r_wrapper",
      class,
      wrap_layer,
      reticulate_namespace()
    )
    registerS3method("format", class, format_layer, baseenv())
    registerS3method("print", class, print_layer, baseenv())
  }
}

reticulate_namespace <- function() asNamespace("reticulate")

wrap_layer <- function(x) {
  force(x)
  function(
    query,
    value = NULL,
    key = NULL,
    ...,
    attention_mask = NULL,
    use_causal_mask = NULL,
    return_attention_scores = FALSE,
    training = NULL,
    query_mask = NULL,
    value_mask = NULL,
    key_mask = NULL,
    attention_bias = NULL,
    segment_ids = NULL,
    positions = NULL
  ) {
    NULL
  }
}
format_layer <- function(x, ...) "layer"
print_layer <- function(x, ...) invisible(x)
