# A layer in R is the Python object, wrapped by reticulate in the function of wrap_layer(). The
# function has the arguments of Keras's call; they are checked and converted as in the pipe. The
# methods are registered for our classes, not for Keras's Layer, whose methods keras3 defines.

# Runs after Keras was loaded. Loads our module too, so that saved models with our layers can be
# read. An error here would look like an error of Keras; it is ignored, and raised at the first
# use of a layer.
on_keras_load <- function() {
  announce_backend()
  if (!isTRUE(the$importing)) {
    tryCatch(python_module(), error = function(cnd) NULL)
  }
}

on_module_load <- function() {
  module <- reticulate::import("kerasattention")
  for (name in c(
    "GroupQueryAttention",
    "MultiHeadAttention",
    "LatentAttention"
  )) {
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
    positions = NULL,
    bidirectional = NULL,
    key_value_from = NULL
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
      positions = positions,
      bidirectional = bidirectional,
      key_value_from = key_value_from
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

# `query` may be everything that `object` may be in the pipe.
call_layer <- function(
  layer,
  query,
  value,
  key,
  arguments,
  call = caller_env()
) {
  check_dots(arguments, call_arguments, c("query", "value", "key"), call = call)
  check_alive(layer, call = call)
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

# Reads attributes instead of the config: Keras imports TensorFlow to write a config, on every
# backend.
call_shape <- function(layer) {
  switch(
    layer_kind(layer),
    GroupQueryAttention = list(axes = c(3, 3), heads = layer$num_query_heads),
    LatentAttention = list(axes = c(3, 3), heads = layer$num_heads),
    list(
      axes = c(least_axes(layer$attention_axes), Inf),
      heads = layer$num_heads
    )
  )
}

layer_kind <- function(layer) {
  if (inherits(layer, "kerasattention.GroupedQueryAttention")) {
    "GroupQueryAttention"
  } else if (inherits(layer, "kerasattention.LatentAttention")) {
    "LatentAttention"
  } else {
    "MultiHeadAttention"
  }
}

print_layer <- function(x, ...) {
  cat(format(x), "\n", sep = "")
  invisible(x)
}

# <GroupQueryAttention "name": 8 query heads, 2 key/value heads, size 64; causal;
# 2,112 parameters>
format_layer <- function(x, ...) {
  if (reticulate::py_is_null_xptr(x)) {
    return("<attention layer of an R session that has ended>")
  }
  kind <- layer_kind(x)
  heads <- switch(
    kind,
    GroupQueryAttention = describe_groups(x),
    LatentAttention = describe_latents(x),
    describe_heads(x)
  )
  about <- c(heads, describe_options(x), describe_parameters(x))
  paste0("<", kind, " \"", x$name, "\": ", paste(about, collapse = "; "), ">")
}

describe_groups <- function(layer) {
  paste0(
    layer$num_query_heads,
    " query heads, ",
    layer$num_key_value_heads,
    " key/value heads, size ",
    layer$head_dim
  )
}

describe_heads <- function(layer) {
  sizes <- unique(c(layer$key_dim, layer$value_dim))
  paste0(layer$num_heads, " heads, size ", paste(sizes, collapse = " and "))
}

describe_latents <- function(layer) {
  sizes <- unique(c(layer$head_dim, layer$value_dim))
  paste0(
    layer$num_heads,
    " heads, size ",
    paste(sizes, collapse = " and "),
    " + ",
    layer$rotary_dim,
    " rotated; latent ",
    layer$kv_rank,
    if (!is.null(layer$query_rank)) {
      paste0(", of queries ", layer$query_rank)
    }
  )
}

describe_options <- function(layer) {
  c(
    if (layer$use_causal_mask) "causal",
    if (!is.null(layer$sliding_window)) paste("window", layer$sliding_window),
    if (!is.null(layer$position)) python_class(layer$position),
    if (!isFALSE(layer$qk_norm)) "query-key norm",
    if (!isFALSE(layer$use_gate)) "gate",
    if (layer$attention_sink) "sink",
    if (!is.null(layer$logit_soft_cap)) {
      paste("soft cap", layer$logit_soft_cap)
    },
    if (layer$value_norm) "value norm",
    if (layer$use_key_as_value) "keys as values",
    if (!is.null(layer$key_value_of)) {
      paste0("keys and values of \"", layer$key_value_of, "\"")
    },
    if (!is.null(layer$query_scale)) python_class(layer$query_scale),
    if (!is.null(layer$scale)) paste("scale", layer$scale),
    if (layer$dropout > 0) paste("dropout", layer$dropout)
  )
}

# A layer has no weights before its first call.
describe_parameters <- function(layer) {
  if (!layer$built) {
    return("not built")
  }
  count <- layer$count_params()
  paste(format(count, big.mark = ","), "parameters")
}
