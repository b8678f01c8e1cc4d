# Elements of `...` must have names that are known. The hint for an unknown name is the most
# similar one among `known` and `near`, the names of the other arguments: a misspelt argument
# without a default is in `...` too.
check_dots <- function(
  dots,
  known,
  near = argument_names(call),
  call = caller_env()
) {
  if (length(dots) == 0) {
    return(invisible(dots))
  }
  names <- names2(dots)
  if (any(names == "")) {
    value <- dots[[which(names == "")[[1]]]]
    abort(
      "Arguments after the last positional one must have names: got {describe_value(value)} without one.",
      hint = paste0(
        "Known names: ",
        paste0("`", known, "`", collapse = ", "),
        "."
      ),
      call = call
    )
  }
  for (name in setdiff(names, known)) {
    abort_unknown(name, dots[[name]], c(known, near), call)
  }
  twice <- names[duplicated(names)]
  if (length(twice) > 0) {
    abort("{.arg {twice[[1]]}} is given twice.", arg = twice[[1]], call = call)
  }
  invisible(dots)
}

abort_unknown <- function(name, value, known, call) {
  near <- nearest_name(name, known)
  abort(
    "{.arg {name}} is not an argument of this function: got {describe_value(value)}.",
    hint = if (length(near) > 0) paste0("Did you mean `", near, "`?"),
    arg = name,
    call = call
  )
}

# The names of the arguments of the function whose frame is `frame`.
argument_names <- function(frame) {
  number <- which(vapply(sys.frames(), identical, NA, frame))
  if (length(number) > 0) {
    setdiff(names(formals(sys.function(number[[1]]))), "...")
  }
}

# A known name that contains the given one, or is a few letters away from it.
nearest_name <- function(name, known) {
  within <- known[grepl(name, known, fixed = TRUE)]
  if (length(within) > 0 && nchar(name) > 2) {
    return(within[[1]])
  }
  if (length(known) == 0) {
    return(NULL)
  }
  distance <- utils::adist(name, known, ignore.case = TRUE)[1, ]
  # A name of which no letter is the same is not similar.
  if (min(distance) > min(nchar(name) - 1, max(2, nchar(name) / 4))) {
    return(NULL)
  }
  known[[which.min(distance)]]
}
