#' @keywords internal
#' @importFrom rlang %||% caller_arg caller_env names2
"_PACKAGE"
