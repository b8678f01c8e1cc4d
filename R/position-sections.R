# The argument `sections` of position_rotary().

section_types <- c("bands", "interleaved", "axial")

# Returns whole numbers as integers.
check_sections <- function(sections, call = caller_env()) {
  if (is.null(sections)) {
    return(NULL)
  }
  if (!is.list(sections) || is.null(names(sections))) {
    return(check_section_sizes(sections, "sections", call))
  }
  if (is.object(sections) || any(names2(sections) == "")) {
    rule <- "whole numbers, a named list with `sizes`, or NULL"
    hint <- 'For example `list(type = "axial", sizes = c(16, 16))`.'
    abort_argument("sections", rule, sections, hint, call)
  }
  unknown <- setdiff(names(sections), c("type", "sizes"))
  if (length(unknown) > 0) {
    abort(
      "{.arg sections} takes {.arg {c('type', 'sizes')}}, not {.arg {unknown[[1]]}}.",
      arg = "sections",
      call = call
    )
  }
  type <- sections$type %||% "bands"
  check_choice(type, section_types, arg = "sections$type", call = call)
  sizes <- check_section_sizes(sections$sizes, "sections$sizes", call)
  list(type = type, sizes = sizes)
}

check_section_sizes <- function(sizes, arg, call) {
  hint <- "One number for each axis: how many pairs of features it rotates."
  check_whole_numbers(sizes, min = 1, hint = hint, arg = arg, call = call)
  sizes <- as.integer(unlist(sizes))
  if (!length(sizes) %in% 2:16) {
    abort_argument(arg, "2 to 16 whole numbers", sizes, hint, call)
  }
  sizes
}
