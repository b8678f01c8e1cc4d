# Checks the arguments of a layer's call, against each other and against the known shapes.
# `inputs` is NULL where the layer is made and not called; `axes` are the smallest and the
# greatest number of axes of an input.

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
  check_no_mask(arguments$attention_bias, "attention_bias", call)
  check(check_ids, "segment_ids")
  check(check_ids, "bidirectional")
  check(check_positions, "positions")
  check(check_output, "key_value_from")
  arguments["positions"] <- list(as_numbers(arguments$positions))
  if (is.null(inputs)) {
    return(check_not_called(arguments, call))
  }
  shapes <- lapply(inputs, shape_of)
  check_shapes(inputs, shapes, axes, call)
  check_call_shapes(arguments, shapes, heads, call)
}

# A mask in place of a bias: added as 0 and 1 it would mask nothing out.
check_no_mask <- function(x, arg, call) {
  if (is.logical(x)) {
    hint <- "What a query attends is `attention_mask`."
    abort_argument(arg, "an array of numbers, or NULL", x, hint, call)
  }
}

# The output of a layer, which holds more than its numbers: an R array does not.
check_output <- function(
  x,
  null = FALSE,
  arg = caller_arg(x),
  call = caller_env()
) {
  check_alive(x, arg = arg, call = call)
  if (!(null && is.null(x)) && !is_tensor(x)) {
    rule <- paste0("a tensor, the output of another layer", or_null(null))
    abort_argument(arg, rule, x, call = call)
  }
  invisible(x)
}

# Of the arguments of a call, a layer that is not called keeps only `use_causal_mask`, as its
# default.
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
