# R functions as rules of a mask. Python calls them for each block of queries and keys: with
# arrays where the positions are known numbers, and while a backend compiles with objects that
# record what is done to them.

#' @rdname mask_causal
#' @export
mask_function <- function(f) {
  check_required(f)
  check_rule_function(f)
  new_mask("mask_function", "MaskFunction", list(f = f), function(q, k) {
    check_visible(f(q, k), dim(q), call = NULL)
  })
}

check_rule_function <- function(f, call = caller_env()) {
  rule <- "a function of two arrays, the positions of queries and keys"
  if (!is.function(f) || is_python(f) || length(formals(args(f))) < 2) {
    abort_argument("f", rule, f, call = call)
  }
  q <- matrix(0:3, 4, 5)
  k <- matrix(0:4, 4, 5, byrow = TRUE)
  visible <- tryCatch(f(q, k), error = function(cnd) {
    message <- conditionMessage(cnd)
    abort(
      "{.arg f} failed for the positions 0 to 4: {message}",
      arg = "f",
      call = call
    )
  })
  check_visible(visible, dim(q), call)
}

check_visible <- function(x, dim, call) {
  if (!is.logical(x) || anyNA(x) || !identical(as.integer(dim(x)), dim)) {
    abort(
      paste(
        "The function of {.fn mask_function} must return TRUE or FALSE for each element",
        "of its arguments, an array of the same shape, not {describe_value(x)}."
      ),
      arg = "f",
      call = call
    )
  }
  x
}

# The object for Python, which calls one R function: with arrays, or with tensors.
as_mask_function <- function(f) {
  call_rule <- function(q, k, known) {
    if (known) {
      return(check_visible(f(q, k), dim(q), call = NULL))
    }
    visible <- f(new_positions(q), new_positions(k))
    if (!inherits(visible, "mask_positions")) {
      abort(
        "The function of {.fn mask_function} must compute its result from both arguments.",
        call = NULL
      )
    }
    visible$tensor
  }
  bridge <- python_module()[["_bridge"]]
  bridge$mask_function(call_rule, rule_text(f))
}

# Positions that are not known yet: operators and some functions of numbers are recorded by
# the backend.
new_positions <- function(tensor) {
  structure(list(tensor = tensor), class = "mask_positions")
}

tensor_operators <- c(
  `+` = "add",
  `-` = "subtract",
  `*` = "multiply",
  `/` = "true_divide",
  `^` = "power",
  `%%` = "mod",
  `%/%` = "floor_divide",
  `==` = "equal",
  `!=` = "not_equal",
  `<` = "less",
  `<=` = "less_equal",
  `>` = "greater",
  `>=` = "greater_equal",
  `&` = "logical_and",
  `|` = "logical_or"
)

tensor_functions <- c(
  abs = "abs",
  floor = "floor",
  ceiling = "ceil",
  trunc = "trunc",
  sqrt = "sqrt",
  exp = "exp",
  log = "log",
  sign = "sign",
  cos = "cos",
  sin = "sin"
)

#' @export
Ops.mask_positions <- function(e1, e2) {
  ops <- reticulate::import("keras.ops", convert = FALSE)
  if (missing(e2)) {
    unary <- c(`-` = "negative", `!` = "logical_not")
    if (.Generic == "+") {
      return(e1)
    }
    operation <- ops[[unary[[.Generic]]]]
    return(new_positions(operation(e1$tensor)))
  }
  operands <- lapply(list(e1, e2), function(x) {
    if (inherits(x, "mask_positions")) x$tensor else as_operand(x)
  })
  operation <- ops[[tensor_operators[[.Generic]]]]
  new_positions(operation(operands[[1]], operands[[2]]))
}

as_operand <- function(x) {
  if (!(is.numeric(x) || is.logical(x)) || length(x) != 1 || is.na(x)) {
    abort(
      paste(
        "The function of {.fn mask_function} may combine positions with single numbers",
        "only where a backend compiles it, not with {describe_value(x)}."
      ),
      hint = "For a table of blocks use `mask_blocks()`.",
      call = NULL
    )
  }
  if (is.logical(x)) x else as.double(x)
}

#' @export
Math.mask_positions <- function(x, ...) {
  name <- .Generic
  if (!name %in% names(tensor_functions) || ...length() > 0) {
    abort(
      "`{name}()` is not possible in a function of {.fn mask_function} where a backend compiles it.",
      hint = paste(
        "Possible are operators and",
        paste0("`", names(tensor_functions), "()`", collapse = ", ")
      ),
      call = NULL
    )
  }
  ops <- reticulate::import("keras.ops", convert = FALSE)
  operation <- ops[[tensor_functions[[name]]]]
  new_positions(operation(x$tensor))
}
