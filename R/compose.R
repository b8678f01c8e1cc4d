# Makes a layer and applies it to the user's `object`: nothing, a Sequential model, or tensors.
# All arguments have been checked before; here Python is started.

compose <- function(
  python_class,
  object,
  inputs,
  arguments,
  call = caller_env()
) {
  called <- names(arguments) %in% call_arguments
  options <- arguments[!called]
  if (is.null(inputs) && isTRUE(arguments$use_causal_mask)) {
    options$use_causal_mask <- TRUE
  }
  layer <- make_layer(python_class, options, call)
  if (is_sequential(object)) {
    with_python(object$add(layer), "add the layer to the model", call)
    return(invisible(object))
  }
  if (is.null(inputs)) {
    return(layer)
  }
  if (isFALSE(arguments$use_causal_mask)) {
    arguments$use_causal_mask <- NULL
    called <- names(arguments) %in% call_arguments
  }
  apply_layer(layer, inputs, arguments[called], call)
}

make_layer <- function(python_class, options, call) {
  constructor <- python_module(call)[[python_class]]
  options <- options[!vapply(options, is.null, NA)]
  with_python(
    {
      for (name in intersect(names(options), checked_by(check_whole_number))) {
        options[[name]] <- as_int(options[[name]])
      }
      for (name in intersect(names(options), checked_by(check_whole_numbers))) {
        options[[name]] <- as_ints(options[[name]])
      }
      for (name in grep(
        "_(initializer|regularizer|constraint)$",
        names(options),
        value = TRUE
      )) {
        check_keras_name(options[[name]], name, call)
        options[[name]] <- as_keras_function(options[[name]], name)
      }
      for (name in intersect(names(options), c("position", "query_scale"))) {
        options[[name]] <- as_python(options[[name]], call)
      }
      if (!is.null(options$mask)) {
        options$mask <- as_python_mask(options$mask, call)
      }
      do.call(constructor, options)
    },
    "make the layer",
    call
  )
}

# `layer` is the Python object, or the R function around it (see R/layer-object.R).
apply_layer <- function(layer, inputs, arguments, call) {
  inputs <- as_inputs(inputs, layer)
  arguments <- as_call_arguments(arguments, layer)
  result <- with_python(
    do.call(python_call(layer), c(unname(inputs), arguments)),
    paste0("call the layer \"", layer$name, "\""),
    call
  )
  if (isTRUE(arguments$return_attention_scores)) {
    names(result) <- c("attention_output", "attention_scores")
  }
  result
}

python_call <- function(layer) reticulate::py_get_attr(layer, "__call__")

# The same R array given twice becomes one tensor: Python recognises self-attention by that.
as_inputs <- function(inputs, layer) {
  dtype <- if (identical(layer$compute_dtype, "float64")) {
    "float64"
  } else {
    "float32"
  }
  done <- lapply(inputs, as_input, dtype)
  for (name in setdiff(names(inputs), "query")) {
    if (!is_python(inputs[[name]]) && identical(inputs[[name]], inputs$query)) {
      done[[name]] <- done$query
    }
  }
  done
}

as_input <- function(x, dtype) {
  if (is_python(x)) {
    return(x)
  }
  ops <- reticulate::import("keras.ops", convert = FALSE)
  ops$convert_to_tensor(as_tensor(x, dtype))
}

# NULL and defaults are not passed, so that Keras fills in masks and `training`.
as_call_arguments <- function(arguments, layer) {
  arguments <- arguments[!vapply(arguments, is.null, NA)]
  if (isFALSE(arguments$return_attention_scores)) {
    arguments$return_attention_scores <- NULL
  }
  convert <- list(
    attention_mask = as_mask,
    query_mask = as_mask,
    value_mask = as_mask,
    key_mask = as_mask,
    attention_bias = as_tensor,
    segment_ids = as_ids,
    positions = as_positions,
    bidirectional = as_ids
  )
  for (name in intersect(names(arguments), names(convert))) {
    arguments[[name]] <- convert[[name]](arguments[[name]])
  }
  arguments
}
