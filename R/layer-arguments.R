# What both layers share: gathering their arguments, and checking those that both
# have. Arguments of the constructor make the layer, those of the call go to it
# when it is composed.

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

# All arguments of the layer function whose frame is `env`, but for the tensors.
layer_arguments <- function(env, dots, call = caller_env()) {
  formals <- names(formals(sys.function(-1)))
  check_dots(dots, c(keras_arguments, mask_arguments), formals, call = call)
  names <- setdiff(formals, c("object", "value", "key", "..."))
  c(mget(names, envir = env), dots)
}

# The sizes have no defaults. Without an object the first positional argument is
# taken for it, which is worth a word.
sizes_hint <- function(object, ...) {
  if (is_number(object)) {
    sizes <- paste(c(...), "=", collapse = ", ")
    paste0(
      "`object` comes first. To make a layer alone, name the sizes: ",
      sizes,
      "."
    )
  }
}

check_layer_arguments <- function(arguments, call = caller_env()) {
  check <- function(checker, name, ...) {
    checker(arguments[[name]], ..., arg = name, call = call)
  }
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
  check(check_alive, "seed")
  if (!is_python(arguments$seed)) {
    check(check_whole_number, "seed", min = 0, null = TRUE)
  }
  check(check_whole_number, "sliding_window", min = 1, null = TRUE)
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

# A name, a dtype policy of Keras or its config as a list.
check_dtype <- function(x, arg = caller_arg(x), call = caller_env()) {
  check_alive(x, arg = arg, call = call)
  config <- is_plain_list(x) && length(x) > 0 && is_convertible(x)
  if (!is_python(x) && !config) {
    check_string(x, null = TRUE, arg = arg, call = call)
  }
}

# Keras puts the name into paths, where a slash separates.
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
