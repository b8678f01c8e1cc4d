# The arguments of both layers: their names, and the checks of those that both have. Arguments
# of the constructor make the layer; arguments of the call are passed when it is called.

call_arguments <- c(
  "attention_mask",
  "attention_bias",
  "segment_ids",
  "positions",
  "use_causal_mask",
  "return_attention_scores",
  "training",
  "query_mask",
  "value_mask",
  "key_mask"
)

keras_arguments <- c("name", "trainable", "dtype", "autocast")

mask_arguments <- c("query_mask", "value_mask", "key_mask")

# The constructor's arguments that are one whole number, and those that are one or several,
# with the limits of each. They are checked here and become Python integers in make_layer().
one_whole_number <- list(
  head_dim = list(min = 1),
  num_query_heads = list(min = 1),
  num_key_value_heads = list(min = 1),
  num_heads = list(min = 1),
  key_dim = list(min = 1),
  value_dim = list(min = 1, null = TRUE),
  sliding_window = list(min = 1, null = TRUE),
  seed = list(min = 0, null = TRUE)
)

axes_hint <- paste(
  "Axes count from 0, as in Python: 0 is the batch, which is not attended;",
  "of (B, rows, columns, D) the columns are axis 2."
)

several_whole_numbers <- list(
  output_shape = list(min = 1, max = 2^20, null = TRUE),
  attention_axes = list(min = -64, max = 63, null = TRUE, hint = axes_hint)
)

# All arguments of the layer function whose frame is `env`, except for the tensors.
layer_arguments <- function(env, dots, call = caller_env()) {
  formals <- names(formals(sys.function(-1)))
  check_dots(dots, c(keras_arguments, mask_arguments), formals, call = call)
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
  check <- function(checker, name, ...) {
    checker(arguments[[name]], ..., arg = name, call = call)
  }
  check_whole_arguments(arguments, call)
  check(check_number, "dropout", min = 0, below = 1)
  check(check_flag, "use_bias")
  check(check_flag, "flash_attention", null = TRUE)
  for (name in c("kernel_initializer", "bias_initializer")) {
    check(check_keras_object, name, kind = "initializer")
  }
  for (name in c("kernel", "bias", "activity")) {
    name <- paste0(name, "_regularizer")
    check(check_keras_object, name, kind = "regularizer", null = TRUE)
  }
  for (name in c("kernel_constraint", "bias_constraint")) {
    check(check_keras_object, name, kind = "constraint", null = TRUE)
  }
  check(check_flag, "use_gate")
  check(check_position, "position")
  check(check_flag, "qk_norm")
  check(check_number, "logit_soft_cap", above = 0, null = TRUE)
  check(check_flag, "attention_sink")
  check(check_layer_name, "name")
  check(check_flag, "trainable", null = TRUE)
  check(check_flag, "autocast", null = TRUE)
  check(check_dtype, "dtype")
}

check_whole_arguments <- function(arguments, call) {
  check_alive(arguments$seed, arg = "seed", call = call)
  if (is_python(arguments$seed)) {
    arguments$seed <- NULL # a seed generator of Keras
  }
  check_all <- function(checker, rules) {
    for (name in intersect(names(rules), names(arguments))) {
      given <- list(arguments[[name]], arg = name, call = call)
      do.call(checker, c(given, rules[[name]]))
    }
  }
  check_all(check_whole_number, one_whole_number)
  check_all(check_whole_numbers, several_whole_numbers)
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
