# Checks the tensors that a layer is applied to: `object`, or `object` with `value` and `key`.
# Returns a list of query, value and key, or NULL where there are no tensors.

check_inputs <- function(
  object,
  value = NULL,
  key = NULL,
  arg = "object",
  call = caller_env()
) {
  check_alive(object, arg = arg, call = call)
  if (is.null(object) || is_sequential(object)) {
    check_no_tensors(object, list(value = value, key = key), call)
    return(NULL)
  }
  inputs <- if (is_plain_list(object)) {
    named_inputs(object, arg, call)
  } else {
    list(query = object)
  }
  inputs <- add_inputs(inputs, list(value = value, key = key), arg, call)
  if (!is.null(inputs$key) && is.null(inputs$value)) {
    abort(
      "{.arg key} needs a {.arg value} as well: keys say where, values what.",
      arg = "value",
      call = call
    )
  }
  for (name in names(inputs)) {
    check_input(inputs[[name]], if (length(inputs) == 1) arg else name, call)
  }
  inputs
}

check_no_tensors <- function(object, tensors, call) {
  given <- names(tensors)[!vapply(tensors, is.null, NA)]
  if (length(given) == 0) {
    return(invisible())
  }
  why <- if (is.null(object)) {
    "there is no {.arg object}, the query"
  } else {
    "a Sequential model passes one tensor from layer to layer"
  }
  abort(
    paste0("{.arg {given[[1]]}} has nothing to go with: ", why, "."),
    hint = if (is.null(object)) {
      "Give the query first, or call the layer: `layer(query, value, key)`."
    } else {
      "Use a functional model: `list(query, value) |> layer_...()`."
    },
    arg = given[[1]],
    call = call
  )
}

# A list of two or three tensors, by position or all named.
named_inputs <- function(object, arg, call) {
  known <- c("query", "value", "key")
  names <- names2(object)
  if (all(names == "") && length(object) %in% 2:3) {
    names(object) <- known[seq_along(object)]
    return(object)
  }
  named <- setequal(names, known[1:2]) || setequal(names, known)
  if (!named || anyDuplicated(names)) {
    abort_argument(
      arg,
      "a list of two or three tensors: query, value, key, in this order or all named",
      object,
      hint = list_hint(object),
      call = call
    )
  }
  object[intersect(known, names)]
}

list_hint <- function(object) {
  if (length(object) == 1) {
    "Self-attention takes the tensor itself."
  } else if (length(object) > 3 && all(names2(object) == "")) {
    "Masks are given by name, beside the list: `value_mask =`, `attention_mask =`."
  }
}

add_inputs <- function(inputs, tensors, arg, call) {
  tensors <- tensors[!vapply(tensors, is.null, NA)]
  for (name in intersect(names(tensors), names(inputs))) {
    abort(
      "{.arg {name}} is given twice: in the list {.arg {arg}} and by name.",
      arg = name,
      call = call
    )
  }
  c(inputs, tensors)
}

# One tensor or array.
check_input <- function(x, arg, call) {
  rule <- "a tensor or an array (B, T, D)"
  if (!arg %in% c("value", "key")) {
    rule <- paste0(
      rule,
      ", a list of two or three of them, or a Sequential model"
    )
  }
  check_alive(x, arg = arg, call = call)
  if (is_tensor(x)) {
    return(invisible())
  }
  if (!is_data_array(x) || axes_of(x) < 2 || lost_integer64(x)) {
    abort_argument(arg, rule, x, input_hint(x, arg), call)
  }
  hint <- "Replace them, and mask out their positions."
  check_no_na(x, hint, arg, call)
}

input_hint <- function(x, arg) {
  if (is.data.frame(x)) {
    return(c(
      "Rows of several sequences: `as_sequences(data, id, time, vars)$x` is an array (B, T, D).",
      "One sequence, rows in order of time: `array(as.matrix(x), c(1, dim(x)))`."
    ))
  }
  if (inherits(x, "sequences")) {
    return(data_hint(x, arg))
  }
  if (inherits(x, "ts")) {
    return(
      "A series is one sequence with one variable: `array(x, c(1, length(x), 1))`."
    )
  }
  if (is_model(x)) {
    return("Attend to what the model returns: `model$output`.")
  }
  if (is_layer(x)) {
    return("Call that layer on a tensor first.")
  }
  if (is_number(x) && !lost_integer64(x)) {
    return(
      "`object` comes first. To make only a layer, name the other arguments."
    )
  }
  if (is_plain_number(x) && axes_of(x) == 1 && !lost_integer64(x)) {
    return(
      "A vector has no axes: `array(x, c(B, T, D))`. Two arrays go into a `list()`, not `c()`."
    )
  }
  NULL
}
