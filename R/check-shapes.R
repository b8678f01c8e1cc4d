check_shapes <- function(inputs, shapes, axes, call) {
  for (name in names(inputs)) {
    if (!is_python(inputs[[name]]) && outside(length(shapes[[name]]), axes)) {
      abort_axes(inputs[[name]], input_argument(name, inputs, call), axes, call)
    }
  }
  query <- shapes$query
  for (name in setdiff(names(inputs), "query")) {
    if (differ(query[1], shapes[[name]][1])) {
      abort(
        paste(
          "{.arg query} and {.arg {name}} must have the same batch size B,",
          "not {query[1]} and {shapes[[name]][1]}."
        ),
        hint = "The batch is the first axis of (B, T, D): each query has a value of its own.",
        arg = name,
        call = call
      )
    }
  }
  if (differ(shapes$value[2], shapes$key[2])) {
    abort(
      paste(
        "{.arg value} and {.arg key} must have the same length S,",
        "not {shapes$value[2]} and {shapes$key[2]}."
      ),
      arg = "key",
      call = call
    )
  }
}

# A single input of a layer function is its argument `object`; a layer calls it `query`.
input_argument <- function(name, inputs, call) {
  alone <- length(inputs) == 1 && "object" %in% argument_names(call)
  if (alone) "object" else name
}

abort_axes <- function(x, arg, axes, call) {
  rule <- if (axes[2] == 3) {
    "an array with 3 axes, (B, T, D)"
  } else if (axes[1] == 3) {
    "an array with at least 3 axes, (B, T, D)"
  } else {
    paste("an array with at least", axes[1], "axes for these `attention_axes`")
  }
  hint <- if (axes_of(x) == 2) {
    "One sequence (T, D) becomes a batch of one: `array(x, c(1, dim(x)))`."
  } else if (axes_of(x) > axes[2]) {
    "`layer_multi_head_attention()` takes inputs with more axes."
  }
  abort_argument(arg, rule, x, hint, call)
}

outside <- function(x, range) x < range[1] || x > range[2]

# Checks masks and ids against inputs of three axes. With more axes Python checks them.
check_call_shapes <- function(arguments, shapes, heads, call) {
  query <- shapes$query
  keys <- if (is.null(shapes$value)) query else shapes$value
  if (length(query) != 3 || length(keys) != 3) {
    return(invisible())
  }
  for (name in c("attention_mask", "attention_bias")) {
    x <- arguments[[name]]
    if (!is.null(x)) {
      check_broadcast(x, c(query[1], heads, query[2], keys[2]), name, call)
    }
  }
  tokens <- list(
    query_mask = query,
    value_mask = keys,
    key_mask = keys,
    segment_ids = query,
    positions = query,
    bidirectional = query
  )
  for (name in names(tokens)) {
    x <- arguments[[name]]
    if (!is.null(x)) {
      check_per_token(x, tokens[[name]][1:2], name, call)
    }
  }
}

# `full`: the sizes of (B, N, T, S), NA where unknown.
check_broadcast <- function(x, full, arg, call) {
  shape <- shape_of(x)
  if (is.null(shape)) {
    return(invisible())
  }
  target <- switch(
    as.character(length(shape)),
    "2" = full[3:4],
    "3" = full[c(1, 3, 4)],
    "4" = full
  )
  fits <- length(target) > 0 &&
    !any(mapply(function(n, m) differ(n, m) && n != 1, shape, target))
  if (!fits) {
    rule <- paste0(
      "of a shape that broadcasts to (B, N, T, S) = ",
      show_shape(full)
    )
    abort_argument(arg, rule, x, broadcast_hint(shape, full, arg), call)
  }
}

broadcast_hint <- function(shape, full, arg) {
  same <- function(a, b) length(a) == length(b) && !any(a != b, na.rm = TRUE)
  if (same(shape, full[c(1, 4)]) && arg == "attention_mask") {
    return(paste(
      "A mask of padded positions, (B, S), is `value_mask`;",
      "or make it `array(mask, c(B, 1, S))`."
    ))
  }
  if (same(shape, full[c(4, 3)])) {
    return("Queries are rows, keys columns: `t(mask)`?")
  }
  "It can be (T, S), (B, T, S), (B, 1, T, S) or (B, N, T, S)."
}

check_per_token <- function(x, sizes, arg, call) {
  shape <- shape_of(x)
  # Python knows how many axes the layer's position has.
  axes <- if (arg == "positions") 2:3 else 2
  fits <- is.null(shape) ||
    is.element(length(shape), axes) &&
      !differ(shape[2], sizes[2]) &&
      (!differ(shape[1], sizes[1]) || shape[1] == 1)
  if (!fits) {
    letter <- if (arg %in% c("value_mask", "key_mask")) "(B, S)" else "(B, T)"
    rule <- paste("a matrix", letter, "=", show_shape(sizes))
    if (length(shape) == 3 && 3 %in% axes) {
      rule <- paste0(rule, ", or an array (B, T, axes)")
    }
    abort_argument(arg, rule, x, call = call)
  }
}
