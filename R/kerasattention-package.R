#' @keywords internal
#' @importFrom rlang %||% .data caller_arg caller_env names2
"_PACKAGE"
