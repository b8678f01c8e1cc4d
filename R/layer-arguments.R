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

check_divisible_heads <- function(query_heads, kv_heads, call = caller_env()) {
  if (query_heads %% kv_heads == 0) {
    return(invisible())
  }
  abort(
    paste(
      "{.arg num_key_value_heads} must divide {.arg num_query_heads}:",
      "{query_heads} query heads cannot share {kv_heads} key/value heads."
    ),
    hint = divisors_hint(query_heads, kv_heads),
    arg = "num_key_value_heads",
    call = call
  )
}

# All that K can be, or where these are many, those nearest to what was given.
divisors_hint <- function(query_heads, kv_heads) {
  divisors <- divisors_of(query_heads)
  nearest <- divisors[order(abs(log(divisors / kv_heads)))]
  few <- sort(utils::head(nearest, 8))
  paste0(
    "With ",
    format(query_heads, scientific = FALSE),
    " query heads it can be ",
    cli::format_inline("{.or {few}}"),
    if (length(few) < length(divisors)) ", among others",
    "."
  )
}

# Each divisor up to the root has a partner beyond it.
divisors_of <- function(n) {
  small <- seq_len(floor(sqrt(n)))
  small <- small[n %% small == 0]
  unique(c(small, rev(n / small)))
}

# The features of all heads are an axis of the kernels. Published models have some ten
# thousand; more than millions are a slip of the pen, and would take the memory of the
# machine.
check_width <- function(heads, size, arg, call = caller_env()) {
  most <- 2^20
  width <- prod(heads, size)
  if (width > most) {
    numbers <- format(
      c(heads, size, width, most),
      scientific = FALSE,
      trim = TRUE
    )
    abort(
      "{.arg {arg[[1]]}} times {.arg {arg[[2]]}} must be at most {numbers[[4]]}, not {numbers[[1]]} times {numbers[[2]]}.",
      arg = arg[[1]],
      call = call
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

# An initializer, regularizer or constraint: a name, an object of Keras, its config
# as a list, or an R function.
check_keras_object <- function(
  x,
  kind,
  null = FALSE,
  arg = caller_arg(x),
  call = caller_env()
) {
  check_alive(x, arg = arg, call = call)
  config <- is_plain_list(x) && !is.null(names(x)) && is_convertible(x)
  named <- is_string(x) && nzchar(x)
  if (null && is.null(x) || named || config || is_python(x)) {
    return(invisible(x))
  }
  if (!is.function(x)) {
    article <- if (kind == "initializer") "an" else "a"
    rule <- paste0("a name, ", article, " ", kind, " object or an R function")
    abort_argument(arg, paste0(rule, or_null(null)), x, call = call)
  }
  if (length(formals(args(x))) == 0 && !is_generator(x)) {
    takes <- if (kind == "initializer") "the shape" else "a tensor"
    abort(
      "{.arg {arg}} must take {takes} as its first argument; {.code {function_name(x)}} takes none.",
      arg = arg,
      call = call
    )
  }
  invisible(x)
}

check_position <- function(x, arg = caller_arg(x), call = caller_env()) {
  check_alive(x, arg = arg, call = call)
  ours <- inherits(x, "kerasattention_position") &&
    is.list(x) &&
    is_string(x$python_class)
  if (is.null(x) || is_python(x) || ours) {
    return(invisible(x))
  }
  hint <- if (is.function(x)) "Call the function, as in `position_rotary()`."
  abort_argument(arg, "a `position_*()` object, or NULL", x, hint, call)
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
