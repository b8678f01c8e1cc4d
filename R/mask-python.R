# The mask as an object of Python.
as_python_mask <- function(x, call = caller_env()) {
  if (is.null(x) || is_python(x)) {
    return(x)
  }
  if (is.null(x$operator)) {
    module <- python_module(call)
    args <- lapply(x$args, as_python_argument)
    return(with_python(
      do.call(module[[x$python_class]], unname(args)),
      paste0("make `", format(x), "`"),
      call
    ))
  }
  masks <- lapply(x$masks, as_python_mask, call)
  operators <- reticulate::import("operator")
  if (x$operator == "!") {
    return(operators$invert(masks[[1]]))
  }
  join <- if (x$operator == "&") operators$and_ else operators$or_
  with_python(Reduce(join, masks), "combine masks", call)
}

as_python_argument <- function(x) {
  if (is.function(x)) {
    as_mask_function(x)
  } else if (is.matrix(x)) {
    as_mask(x)
  } else {
    as_int(x)
  }
}
