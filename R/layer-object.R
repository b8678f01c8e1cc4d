# A layer in R: the Python object, which reticulate wraps in a function that we
# supply. Its arguments are those of Keras's call, and what R passes is checked and
# converted as in the pipe. The methods stand on our own classes, so that keras3's,
# which stand on Keras's Layer, stay as they are for every other layer.

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
      asNamespace("reticulate")
    )
    registerS3method("format", class, format_layer, baseenv())
    registerS3method("print", class, print_layer, baseenv())
  }
}

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
    attention_bias = NULL,
    segment_ids = NULL,
    positions = NULL
  ) {
    dots <- list(...)
    query <- if (missing(query)) dots$object else query
    arguments <- list(
      attention_mask = attention_mask,
      use_causal_mask = use_causal_mask,
      return_attention_scores = return_attention_scores,
      training = training,
      attention_bias = attention_bias,
      segment_ids = segment_ids,
      positions = positions
    )
    call_layer(
      x,
      query,
      value,
      key,
      c(arguments, dots[names2(dots) != "object"])
    )
  }
}

# `query` is all that `object` can be in the pipe.
call_layer <- function(
  layer,
  query,
  value,
  key,
  arguments,
  call = caller_env()
) {
  check_dots(arguments, call_arguments, c("query", "value", "key"), call = call)
  if (is.null(query)) {
    abort("{.arg query} is required.", arg = "query", call = call)
  }
  inputs <- check_inputs(query, value, key, arg = "query", call = call)
  if (is_sequential(query)) {
    check_call(
      NULL,
      arguments[names(arguments) != "use_causal_mask"],
      NULL,
      call = call
    )
    with_python(query$add(layer), "add the layer to the model", call)
    return(invisible(query))
  }
  shape <- call_shape(layer)
  check_call(inputs, arguments, shape$axes, shape$heads, call)
  apply_layer(layer, inputs, arguments, call)
}

call_shape <- function(layer) {
  config <- layer$get_config()
  if (is.null(config$num_heads)) {
    list(axes = c(3, 3), heads = config$num_query_heads)
  } else {
    list(
      axes = c(least_axes(config$attention_axes), Inf),
      heads = config$num_heads
    )
  }
}

print_layer <- function(x, ...) {
  cat(format(x), "\n", sep = "")
  invisible(x)
}

# <GroupQueryAttention "name": 8 query heads, 2 key/value heads, size 64; causal>
format_layer <- function(x, ...) {
  if (reticulate::py_is_null_xptr(x)) {
    return("<attention layer of an R session that has ended>")
  }
  config <- x$get_config()
  about <- if (is.null(config$num_heads)) {
    describe_groups(config)
  } else {
    describe_heads(config)
  }
  kind <- if (is.null(config$num_heads)) {
    "GroupQueryAttention"
  } else {
    "MultiHeadAttention"
  }
  options <- describe_options(config)
  about <- paste(c(about, options), collapse = "; ")
  paste0("<", kind, " \"", config$name, "\": ", about, ">")
}

describe_groups <- function(config) {
  paste0(
    config$num_query_heads,
    " query heads, ",
    config$num_key_value_heads,
    " key/value heads, size ",
    config$head_dim
  )
}

describe_heads <- function(config) {
  sizes <- unique(c(config$key_dim, config$value_dim))
  paste0(config$num_heads, " heads, size ", paste(sizes, collapse = " and "))
}

describe_options <- function(config) {
  position <- config$position$class_name
  c(
    if (isTRUE(config$use_causal_mask)) "causal",
    if (!is.null(config$sliding_window)) paste("window", config$sliding_window),
    if (!is.null(position)) position,
    if (isTRUE(config$qk_norm)) "query-key norm",
    if (isTRUE(config$use_gate)) "gate",
    if (isTRUE(config$attention_sink)) "sink",
    if (!is.null(config$logit_soft_cap)) {
      paste("soft cap", config$logit_soft_cap)
    },
    if (config$dropout > 0) paste("dropout", config$dropout)
  )
}
