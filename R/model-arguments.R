# Checks and conversions of the functions that take a whole model.

check_model <- function(
  model,
  arg = caller_arg(model),
  call = caller_env()
) {
  if (!is_model(model)) {
    hint <- if (is_layer(model)) {
      "Wrap the layer in a model: `keras$Model(input, output)`."
    }
    abort_argument(arg, "a Keras model", model, hint, call)
  }
  check_alive(model, arg = arg, call = call)
}

check_layer <- function(
  layer,
  arg = caller_arg(layer),
  call = caller_env()
) {
  if (!is_attention_layer(layer)) {
    rule <- "a layer made by `layer_group_query_attention()` or `layer_multi_head_attention()`"
    abort_argument(arg, rule, layer, call = call)
  }
  check_alive(layer, arg = arg, call = call)
}

# One input, or a list of several.
check_model_input <- function(x, arg = caller_arg(x), call = caller_env()) {
  if (!is_plain_list(x)) {
    check_array(x, arg = arg, call = call)
    return(check_values(x, arg, call))
  }
  if (length(x) == 0) {
    abort_argument(arg, "an array, or a list of them", x, call = call)
  }
  for (i in seq_along(x)) {
    check_array(x[[i]], arg = paste0(arg, "[[", i, "]]"), call = call)
    check_values(x[[i]], paste0(arg, "[[", i, "]]"), call)
  }
  invisible(x)
}

# Whether the one input of a model has as many axes as the model was made for: a sample taken
# out of an array loses its axis in R.
check_input_axes <- function(
  x,
  model,
  arg = caller_arg(x),
  call = caller_env()
) {
  force(arg)
  if (is_plain_list(x) && length(x) == 1) {
    x <- x[[1]]
  }
  sizes <- if (!is_plain_list(x)) end_sizes(model, "input")
  given <- shape_of(x)
  if (is.null(sizes) || is.null(given) || length(given) == length(sizes)) {
    return(invisible(x))
  }
  rule <- paste(
    "an array with the axes of the model's input,",
    show_shape(sizes)
  )
  hint <- if (length(given) == length(sizes) - 1) {
    commas <- strrep(", ", length(sizes) - 1)
    paste0(
      "One sample of an array keeps its axis with `x[1",
      commas,
      ", drop = FALSE]`."
    )
  }
  abort_argument(arg, rule, x, hint, call)
}

# The shape of the one input or output of a model, NULL where it has several or none is known.
end_sizes <- function(model, side) {
  tryCatch(shape_of(model[[side]]), error = function(cnd) NULL)
}

# A symbolic tensor, such as the input of a model, holds no values.
check_values <- function(x, arg, call) {
  if (inherits(x, "keras.src.backend.common.keras_tensor.KerasTensor")) {
    rule <- "an array or a tensor with values"
    abort_argument(arg, rule, x, call = call)
  }
  invisible(x)
}

# The inputs of a model other than its tokens: one, or a list by name or in order.
check_other_inputs <- function(
  inputs,
  arg = caller_arg(inputs),
  call = caller_env()
) {
  if (!is.null(inputs)) {
    check_model_input(inputs, arg = arg, call = call)
  }
}

# A vector is the input of one row.
as_other_inputs <- function(inputs) {
  if (is.null(inputs) || is_python(inputs)) {
    return(inputs)
  }
  if (is_plain_list(inputs)) {
    return(lapply(inputs, as_other_inputs))
  }
  as_model_input(if (axes_of(inputs) == 1) matrix(inputs, 1) else inputs)
}

# Integers stay integers: they are token ids. A list of one array is that array.
as_model_input <- function(x) {
  if (is_plain_list(x) && length(x) == 1 && is.null(names(x))) {
    return(as_model_input(x[[1]]))
  }
  if (is_plain_list(x)) {
    return(lapply(x, as_model_input))
  }
  if (is.integer(x)) as_ids(x) else as_tensor(x)
}

check_layers <- function(
  layers,
  arg = caller_arg(layers),
  call = caller_env()
) {
  if (is_text(layers) && length(layers) > 0 && !anyNA(layers)) {
    return(invisible(layers))
  }
  hint <- "Layers can also be given by name."
  check_whole_numbers(
    layers,
    min = 1,
    null = TRUE,
    hint = hint,
    arg = arg,
    call = call
  )
}

as_layers <- function(layers) {
  if (is.character(layers)) as.list(layers) else zero_based(layers)
}

# R counts from 1, Python from 0.
zero_based <- function(x) {
  if (is.null(x)) NULL else as.list(as.integer(unlist(x)) - 1L)
}
