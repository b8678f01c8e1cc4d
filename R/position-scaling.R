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
  )
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
    } else if (name == "original_max_position_embeddings") {
      check_whole_number(value, min = 1, arg = arg, call = call)
      parameters[[name]] <- as.integer(value)
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
