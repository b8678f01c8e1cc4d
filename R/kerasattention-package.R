#' @keywords internal
#' @importFrom rlang %||% .data caller_arg caller_env names2
"_PACKAGE"

# State of the session: `module` and `functions`, of Python, once imported; `importing`, while
# they are; `required`, what reticulate has been asked for.
the <- new.env(parent = emptyenv())
