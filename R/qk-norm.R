# The argument `qk_norm` of the layers.

norm_types <- c("rms", "layer", "l2")

# What a list may hold: the checker of each entry, and what else the checker is given.
norm_entries <- function() {
  list(
    type = list(check_choice, choices = norm_types),
    over = list(check_choice, choices = c("head", "width")),
    epsilon = list(check_number, min = 1e-30, max = 1),
    after_position = list(check_flag),
    offset = list(check_number, min = -1e5, max = 1e5),
    learned = list(check_flag),
    per_head = list(check_flag),
    bias = list(check_flag)
  )
}

check_qk_norm <- function(x, arg = caller_arg(x), call = caller_env()) {
  if (is_flag(x)) {
    return(invisible(x))
  }
  if (is_string(x)) {
    return(check_choice(x, norm_types, arg = arg, call = call))
  }
  if (!is_plain_list(x) || length(x) == 0 || any(names2(x) == "")) {
    quoted <- paste0('"', norm_types, '"', collapse = ", ")
    rule <- paste0("TRUE, FALSE, one of ", quoted, ", or a named list")
    hint <- "For example `list(type = \"rms\", over = \"width\")`."
    abort_argument(arg, rule, x, hint, call)
  }
  checks <- norm_entries()
  check_entry_names(x, names(checks), arg, call)
  for (name in names(x)) {
    check <- checks[[name]]
    given <- c(list(x[[name]]), check[-1])
    given <- c(given, arg = paste0(arg, "$", name), call = call)
    do.call(check[[1]], given, quote = TRUE)
  }
  check_norm_entries_together(x, arg, call)
  invisible(x)
}

# The names of a list's entries, each once.
check_entry_names <- function(x, known, arg, call) {
  for (name in names(x)) {
    if (!name %in% known) {
      near <- nearest_name(name, known)
      abort(
        "{.arg {arg}} takes {.arg {known}}, not {.arg {name}}: got {describe_value(x[[name]])}.",
        hint = if (length(near) > 0) paste0("Did you mean `", near, "`?"),
        arg = arg,
        call = call
      )
    }
  }
  twice <- names(x)[duplicated(names(x))]
  if (length(twice) > 0) {
    abort(
      "{.arg {arg}} has {.arg {twice[[1]]}} twice.",
      arg = arg,
      call = call
    )
  }
}

check_norm_entries_together <- function(x, arg, call) {
  if (isTRUE(x$bias) && !identical(x$type, "layer")) {
    rule <- "FALSE for a type other than \"layer\""
    abort_argument(paste0(arg, "$bias"), rule, x$bias, call = call)
  }
  about_scale <- isTRUE(x$per_head) || isTRUE(x$bias) || (x$offset %||% 0) != 0
  if (isFALSE(x$learned) && about_scale) {
    rule <- "TRUE with `offset`, `per_head` or `bias`, which are about a learned scale"
    abort_argument(paste0(arg, "$learned"), rule, x$learned, call = call)
  }
}
