# The arguments of the layers: their names, and the checks of those of the constructors.
# Arguments of the constructor make the layer; those of the call are passed when it is called.

call_arguments <- c(
  "attention_mask",
  "attention_bias",
  "segment_ids",
  "positions",
  "bidirectional",
  "use_causal_mask",
  "return_attention_scores",
  "training",
  "query_mask",
  "value_mask",
  "key_mask",
  "key_value_from"
)

keras_arguments <- c("name", "trainable", "dtype", "autocast")

mask_arguments <- c("query_mask", "value_mask", "key_mask")

axes_hint <- paste(
  "Axes count from 0, as in Python: 0 is the batch, which is not attended;",
  "of (B, rows, columns, D) the columns are axis 2."
)

# The arguments of the constructors: the checker of each, and what else the checker is given.
# Whole numbers become integers of Python in make_layer().
constructor_checks <- function() {
  initializer <- list(check_keras_object, kind = "initializer")
  regularizer <- list(check_keras_object, kind = "regularizer", null = TRUE)
  constraint <- list(check_keras_object, kind = "constraint", null = TRUE)
  list(
    head_dim = list(check_whole_number, min = 1),
    num_query_heads = list(check_whole_number, min = 1),
    num_key_value_heads = list(check_whole_number, min = 1),
    num_heads = list(check_whole_number, min = 1),
    key_dim = list(check_whole_number, min = 1),
    value_dim = list(check_whole_number, min = 1, null = TRUE),
    kv_rank = list(check_whole_number, min = 1),
    query_rank = list(check_whole_number, min = 1, null = TRUE),
    rotary_dim = list(check_whole_number, min = 2),
    sliding_window = list(check_whole_number, min = 1, null = TRUE),
    seed = list(check_whole_number, min = 0, null = TRUE),
    output_shape = list(check_whole_numbers, min = 1, max = 2^20, null = TRUE),
    attention_axes = list(
      check_whole_numbers,
      min = -64,
      max = 63,
      null = TRUE,
      hint = axes_hint
    ),
    dropout = list(check_number, min = 0, below = 1),
    use_bias = list(check_flag),
    flash_attention = list(check_flag, null = TRUE),
    kernel_initializer = initializer,
    bias_initializer = initializer,
    kernel_regularizer = regularizer,
    bias_regularizer = regularizer,
    activity_regularizer = regularizer,
    kernel_constraint = constraint,
    bias_constraint = constraint,
    use_gate = list(check_gate),
    position = list(check_position),
    qk_norm = list(check_qk_norm),
    logit_soft_cap = list(check_number, above = 0, null = TRUE),
    attention_sink = list(check_flag),
    value_norm = list(check_flag),
    use_key_as_value = list(check_flag),
    scale = list(check_scale),
    query_scale = list(check_query_scale),
    key_value_of = list(check_key_value_of),
    mask = list(check_mask_rule),
    name = list(check_layer_name),
    trainable = list(check_flag, null = TRUE),
    autocast = list(check_flag, null = TRUE),
    dtype = list(check_dtype)
  )
}

# The names of the constructors' arguments with a checker.
checked_by <- function(checker) {
  has_checker <- function(check) identical(check[[1]], checker)
  names(Filter(has_checker, constructor_checks()))
}

# Unknown names come before missing arguments: `heads = 2` is a misspelt `num_heads`.
check_layer_dots <- function(dots, call = caller_env()) {
  check_dots(dots, c(keras_arguments, mask_arguments), call = call)
}

# All arguments of the layer function whose frame is `env`, except for the tensors.
layer_arguments <- function(env, dots) {
  formals <- names(formals(sys.function(-1)))
  names <- setdiff(formals, c("object", "value", "key", "..."))
  c(mget(names, envir = env), dots)
}

# The sizes have no defaults. Where the object was left out, the first size is taken for it:
# the hint says so.
sizes_hint <- function(object, ...) {
  if (is_number(object)) {
    sizes <- paste(c(...), "=", collapse = ", ")
    paste0(
      "`object` comes first. To make only a layer, name the sizes: ",
      sizes,
      "."
    )
  }
}

check_layer_arguments <- function(arguments, call = caller_env()) {
  check_alive(arguments$seed, arg = "seed", call = call)
  if (is_python(arguments$seed)) {
    arguments$seed <- NULL # a seed generator of Keras
  }
  checks <- constructor_checks()
  for (name in intersect(names(checks), names(arguments))) {
    check <- checks[[name]]
    given <- c(list(arguments[[name]]), check[-1], arg = name, call = call)
    do.call(check[[1]], given, quote = TRUE)
  }
}

check_gate <- function(x, arg = caller_arg(x), call = caller_env()) {
  if (!is_flag(x) && !identical(x, "element") && !identical(x, "head")) {
    rule <- "TRUE, FALSE, \"element\" or \"head\""
    abort_argument(arg, rule, x, call = call)
  }
  invisible(x)
}

# A factor of the logits, or "learned".
check_scale <- function(x, arg = caller_arg(x), call = caller_env()) {
  good <- is_number(x) && x >= 1.2e-38 && x <= 3.4e38
  if (!is.null(x) && !good && !identical(x, "learned")) {
    rule <- "a number above 0, \"learned\", or NULL"
    abort_argument(arg, rule, x, call = call)
  }
  invisible(x)
}

# The Python object, or the R function around it. Python checks its heads.
check_key_value_of <- function(
  x,
  arg = caller_arg(x),
  call = caller_env()
) {
  check_alive(x, arg = arg, call = call)
  if (!is.null(x) && !is_attention_layer(x)) {
    hint <- if (is_tensor(x)) {
      "Give the layer itself: make it first, without `object`, and call it on the tensor."
    }
    abort_argument(arg, "an attention layer, or NULL", x, hint, call)
  }
  invisible(x)
}

# A name, a dtype policy of Keras or its config as a list.
check_dtype <- function(x, arg = caller_arg(x), call = caller_env()) {
  check_alive(x, arg = arg, call = call)
  config <- is_plain_list(x) && length(x) > 0 && is_convertible(x)
  if (!is_python(x) && !config) {
    check_string(x, null = TRUE, arg = arg, call = call)
  }
}

# Keras uses the name in paths, which slashes separate.
check_layer_name <- function(x, arg = caller_arg(x), call = caller_env()) {
  check_string(x, null = TRUE, arg = arg, call = call)
  if (is_string(x) && (!nzchar(x) || grepl("/", x, fixed = TRUE))) {
    abort_argument(
      arg,
      "a string that is not empty and has no `/`",
      x,
      call = call
    )
  }
  invisible(x)
}
