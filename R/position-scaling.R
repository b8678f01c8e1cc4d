# The argument `scaling` of position_rotary().

# The required and optional parameters of each type. Python has their defaults.
scaling_types <- list(
  linear = list(must = "factor"),
  ntk = list(must = "factor"),
  yarn = list(
    must = c("factor", "original_max_position_embeddings"),
    may = c(
      "attention_factor",
      "beta_fast",
      "beta_slow",
      "mscale",
      "mscale_all_dim",
      "truncate"
    )
  ),
  llama3 = list(
    must = "factor",
    may = c(
      "low_freq_factor",
      "high_freq_factor",
      "original_max_position_embeddings"
    )
  ),
  longrope = list(
    must = c("short_factor", "long_factor", "original_max_position_embeddings"),
    may = c("max_position_embeddings", "factor", "attention_factor", "length")
  ),
  dynamic = list(
    must = c("factor", "original_max_position_embeddings"),
    may = "length"
  ),
  proportional = list(may = c("factor", "partial_rotary_factor"))
)
scaling_lengths <- c(
  "original_max_position_embeddings",
  "max_position_embeddings",
  "length"
)

# Returns the scaling with a `type`, and whole numbers as integers.
check_scaling <- function(scaling, call = caller_env()) {
  if (is.null(scaling)) {
    return(NULL)
  }
  types <- names(scaling_types)
  quoted <- paste0('"', types, '"')
  if (!is.list(scaling) || is.object(scaling) || any(names2(scaling) == "")) {
    rule <- "a named list with a `type`, or NULL"
    hint <- 'For example `list(type = "linear", factor = 2)`.'
    abort_argument("scaling", rule, scaling, hint, call)
  }
  scaling <- Filter(Negate(is.null), scaling)
  type <- scaling$type %||% scaling$rope_type
  if (!identical(type, scaling$rope_type %||% type)) {
    rule <- paste0("the same as `type`, \"", type, "\"")
    abort_argument("scaling$rope_type", rule, scaling$rope_type, call = call)
  }
  if (!is_string(type) || !type %in% types) {
    rule <- cli::format_inline("{.or {quoted}}")
    abort_argument("scaling$type", rule, type, call = call)
  }
  parameters <- scaling[!names(scaling) %in% c("type", "rope_type")]
  check_scaling_names(parameters, type, call)
  if (type == "longrope") {
    check_longrope(parameters, call)
  }
  c(type = type, check_scaling_values(parameters, call))
}

check_scaling_names <- function(parameters, type, call) {
  must <- scaling_types[[type]]$must
  known <- c(must, scaling_types[[type]]$may)
  for (name in setdiff(names(parameters), known)) {
    near <- nearest_name(name, known)
    abort(
      paste(
        "{.arg scaling} of type {.val {type}} takes {.arg {known}}, not",
        "{.arg {name}}: got {describe_value(parameters[[name]])}."
      ),
      hint = if (length(near) > 0) paste0("Did you mean `", near, "`?"),
      arg = "scaling",
      call = call
    )
  }
  for (name in setdiff(must, names(parameters))) {
    abort(
      "{.arg scaling} of type {.val {type}} needs {.arg {name}}.",
      hint = "It is in the model's published config, under `rope_scaling`.",
      arg = "scaling",
      call = call
    )
  }
}

check_scaling_values <- function(parameters, call) {
  for (name in names(parameters)) {
    value <- parameters[[name]]
    arg <- paste0("scaling$", name)
    if (name == "truncate") {
      check_flag(value, arg = arg, call = call)
    } else if (name == "factor") {
      check_number(value, min = 1, arg = arg, call = call)
    } else if (name %in% scaling_lengths) {
      check_whole_number(value, min = 1, arg = arg, call = call)
      parameters[[name]] <- as.integer(value)
    } else if (name %in% c("short_factor", "long_factor")) {
      parameters[[name]] <- check_factors(value, arg, call)
    } else if (name == "partial_rotary_factor") {
      check_number(value, above = 0, max = 1, arg = arg, call = call)
    } else {
      check_number(value, above = 0, arg = arg, call = call)
    }
  }
  low <- parameters$low_freq_factor %||% 1
  high <- parameters$high_freq_factor %||% 4
  if (low >= high) {
    rule <- paste("greater than `low_freq_factor`,", low)
    abort_argument("scaling$high_freq_factor", rule, high, call = call)
  }
  parameters
}

# A config that was read into lists has a list of numbers.
check_factors <- function(x, arg, call) {
  numbers <- if (is_plain_list(x)) unlist(x) else x
  good <- is_plain_number(numbers) &&
    axes_of(numbers) == 1 &&
    length(numbers) > 0 &&
    all(is.finite(numbers) & numbers > 0)
  if (!good) {
    hint <- "One for each pair of rotated features."
    abort_argument(arg, "numbers above 0", x, hint, call)
  }
  as.double(numbers)
}

check_longrope <- function(parameters, call) {
  given <- c("max_position_embeddings", "factor", "attention_factor")
  if (!any(given %in% names(parameters))) {
    abort(
      "{.arg scaling} of type {.val longrope} needs {.or {.arg {given}}}.",
      hint = "`max_position_embeddings` is in the model's published config.",
      arg = "scaling",
      call = call
    )
  }
  original <- parameters$original_max_position_embeddings
  arg <- "scaling$original_max_position_embeddings"
  check_whole_number(original, min = 2, arg = arg, call = call)
}
