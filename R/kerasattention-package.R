#' @keywords internal
#' @importFrom rlang %||% .data caller_arg caller_env names2
"_PACKAGE"

# State of the session: the Python `module` and its `functions`, once imported; `importing`,
# TRUE during the import; `required`, the packages that reticulate was asked for.
the <- new.env(parent = emptyenv())
