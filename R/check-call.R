# The arguments of a call, against each other and against the shapes that are known.
# `inputs` is NULL where the layer is made and not called, `axes` the least and the
# largest number of axes of an input.

check_call <- function(
  inputs,
  arguments,
  axes,
  heads = NULL,
  call = caller_env()
) {
  check <- function(checker, name, ...) {
    checker(arguments[[name]], ..., null = TRUE, arg = name, call = call)
  }
  check(check_flag, "use_causal_mask")
  check(check_flag, "return_attention_scores")
  check(check_flag, "training")
  check(check_mask, "attention_mask")
  for (name in mask_arguments) {
    check(check_mask, name)
  }
  check(check_array, "attention_bias")
  check(check_ids, "segment_ids")
  check(check_ids, "positions")
  if (is.null(inputs)) {
    return(check_not_called(arguments, call))
  }
  shapes <- lapply(inputs, shape_of)
  check_shapes(inputs, shapes, axes, call)
  check_call_shapes(arguments, shapes, heads, call)
}

# TRUE / 1 means attend: logicals, or numbers that are 0 and 1.
check_mask <- function(
  x,
  null = FALSE,
  arg = caller_arg(x),
  call = caller_env()
) {
  rule <- if (arg == "attention_mask") {
    "a logical array, TRUE where a query attends a key"
  } else {
    "a logical matrix, TRUE for tokens and FALSE for padding"
  }
  rule <- paste0(rule, or_null(null))
  if (left_to_python(x, null, rule, arg, call)) {
    return(invisible(x))
  }
  if (!is_numeric_array(x)) {
    abort_argument(arg, rule, x, call = call)
  }
  if (axes_of(x) < 2) {
    hint <- mask_hint(arg)
    abort_argument(arg, rule, x, hint, call)
  }
  check_no_na(x, arg = arg, call = call)
  other <- if (is.numeric(x)) x[!x %in% c(0, 1)]
  if (length(other) > 0) {
    hint <- if (arg == "attention_mask") {
      "To add numbers to the logits, use `attention_bias`."
    }
    abort(
      "{.arg {arg}} must hold TRUE and FALSE, or 1 and 0, not {.val {other[[1]]}}.",
      hint = hint,
      arg = arg,
      call = call
    )
  }
  warn_inverted(x, arg, call)
  invisible(x)
}

# Elsewhere TRUE may mean padding, or hidden. Such a mask has a look that one of ours
# hardly ever has: padding first and one sequence that is nothing but padding; or the
# future seen, and the past and the position itself not.
warn_inverted <- function(x, arg, call) {
  if (length(dim(x)) != 2 || length(x) == 0 || all(x == x[[1]])) {
    return(invisible())
  }
  x <- x == 1
  hides <- if (arg == "attention_mask") {
    is_future <- nrow(x) == ncol(x) && all(x == upper.tri(x))
    if (is_future) "hides each position and its past, and shows the future"
  } else {
    padded_left <- all(apply(x, 1, function(row) !is.unsorted(row)))
    empty <- which(!apply(x, 1, any))
    if (padded_left && length(empty) > 0) {
      paste("hides every token of sequence", empty[[1]])
    }
  }
  if (!is.null(hides)) {
    warn_mask(arg, hides, call)
  }
}

warn_mask <- function(arg, hides, call) {
  rlang::warn(
    c(
      paste0("`", arg, "` ", hides, "."),
      i = paste0("TRUE means attend, FALSE hides: did you mean `!", arg, "`?")
    ),
    class = "kerasattention_warning",
    call = call
  )
}

mask_hint <- function(arg) {
  if (arg == "attention_mask") {
    paste(
      "Its shape is (T, S), (B, T, S), (B, 1, T, S) or (B, N, T, S);",
      "`use_causal_mask = TRUE` makes a causal one."
    )
  } else {
    paste0(
      "It has a row for each sequence: `matrix(",
      arg,
      ", nrow = 1)` for a single one."
    )
  }
}

# Whole numbers, one for each token.
check_ids <- function(
  x,
  null = FALSE,
  arg = caller_arg(x),
  call = caller_env()
) {
  rule <- paste0(
    "a matrix (B, T) of whole numbers of at least 0",
    or_null(null)
  )
  if (left_to_python(x, null, rule, arg, call)) {
    return(invisible(x))
  }
  if (!is_plain_number(x) || axes_of(x) != 2) {
    hint <- if (is_plain_number(x) && axes_of(x) == 1) {
      paste0("For a single sequence: `matrix(", arg, ", nrow = 1)`.")
    }
    abort_argument(arg, rule, x, hint, call)
  }
  check_no_na(x, arg = arg, call = call)
  check_id_values(x, rule, arg, call)
  invisible(x)
}

# Ids are integers of 32 bits in R and in Python; what is greater would wrap.
check_id_values <- function(x, rule, arg, call) {
  good <- is.finite(x) & x == trunc(x) & x >= 0
  if (!all(good)) {
    abort_argument(arg, rule, x[!good][[1]], call = call)
  }
  limit <- .Machine$integer.max
  if (any(x > limit)) {
    abort(
      "{.arg {arg}} must hold integers of 32 bits, up to {limit}, not {format(x[x > limit][[1]], digits = 15)}.",
      arg = arg,
      call = call
    )
  }
}

# A layer that is not called has no use for arguments of a call, but keeps
# `use_causal_mask` as its default.
check_not_called <- function(arguments, call) {
  arguments <- arguments[setdiff(call_arguments, "use_causal_mask")]
  if (isFALSE(arguments$return_attention_scores)) {
    arguments$return_attention_scores <- NULL
  }
  given <- names(arguments)[!vapply(arguments, is.null, NA)]
  if (length(given) > 0) {
    name <- given[[1]]
    abort(
      "{.arg {name}} belongs to a call, and the layer is not called here.",
      hint = paste0(
        "Call the layer: `layer(x, ",
        name,
        " = ...)`; or put it into a functional model: `x |> layer_...(",
        name,
        " = ...)`."
      ),
      arg = name,
      call = call
    )
  }
}

# Shapes ------------------------------------------------------------------------

# The sizes of an array or tensor, NA where a symbolic tensor leaves them open;
# NULL where nothing is known.
shape_of <- function(x) {
  if (!is_python(x)) {
    return(dim_of(x))
  }
  tryCatch(
    {
      sizes <- reticulate::import_builtins()$list(x$shape)
      vapply(
        sizes,
        function(n) if (is.null(n)) NA_integer_ else as.integer(n),
        1L
      )
    },
    error = function(cnd) NULL
  )
}

check_shapes <- function(inputs, shapes, axes, call) {
  for (name in names(inputs)) {
    if (!is_python(inputs[[name]]) && outside(length(shapes[[name]]), axes)) {
      abort_axes(inputs[[name]], name, axes, call)
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

differ <- function(a, b) isTRUE(a != b)

# Masks and ids against inputs of three axes; with more axes Python checks them.
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
    positions = query
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
  fits <- is.null(shape) ||
    length(shape) == 2 &&
      !differ(shape[2], sizes[2]) &&
      (!differ(shape[1], sizes[1]) || shape[1] == 1)
  if (!fits) {
    letter <- if (arg %in% c("value_mask", "key_mask")) "(B, S)" else "(B, T)"
    rule <- paste("a matrix", letter, "=", show_shape(sizes))
    abort_argument(arg, rule, x, call = call)
  }
}

show_shape <- function(sizes) {
  paste0("(", paste(ifelse(is.na(sizes), "?", sizes), collapse = ", "), ")")
}
