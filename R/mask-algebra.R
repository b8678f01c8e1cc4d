# Objects for the argument `mask` of the layers, made by the mask_*() functions. Each has the
# class of its Python counterpart, its arguments, and a rule in R: a function of two arrays of
# positions, with which plot() draws it without Python.

new_mask <- function(name, python_class, args, rule) {
  structure(
    list(name = name, python_class = python_class, args = args, rule = rule),
    class = c(name, "kerasattention_mask")
  )
}

# Several masks as one; `!` has one mask.
combined_mask <- function(operator, masks) {
  rules <- lapply(masks, function(mask) mask$rule)
  apply_rules <- function(join) {
    function(q, k) Reduce(join, lapply(rules, function(rule) rule(q, k)))
  }
  rule <- switch(
    operator,
    `&` = apply_rules(`&`),
    `|` = apply_rules(`|`),
    `!` = function(q, k) !rules[[1]](q, k)
  )
  structure(
    list(operator = operator, masks = masks, rule = rule),
    class = c("mask_combined", "kerasattention_mask")
  )
}

is_mask_rule <- function(x) {
  inherits(x, "kerasattention_mask") && is.list(x) && is.function(x$rule)
}

#' @export
Ops.kerasattention_mask <- function(e1, e2) {
  masks <- if (missing(e2)) list(e1) else list(e1, e2)
  operator <- .Generic
  if (!operator %in% c("&", "|", "!")) {
    abort(
      "Masks are combined with `&`, `|` and `!`, not with `{operator}`.",
      call = sys.call()
    )
  }
  for (mask in masks) {
    if (!is_mask_rule(mask)) {
      abort(
        "A mask can be combined with another mask only, not with {describe_value(mask)}.",
        hint = "Arrays of TRUE and FALSE are for the argument `attention_mask`.",
        call = sys.call()
      )
    }
  }
  combined_mask(operator, masks)
}

#' @export
format.kerasattention_mask <- function(x, ...) {
  if (!is.null(x$operator)) {
    parts <- vapply(x$masks, format_part, "", x$operator)
    if (x$operator == "!") {
      return(paste0("!", parts))
    }
    return(paste(parts, collapse = paste0(" ", x$operator, " ")))
  }
  values <- vapply(x$args, format_mask_argument, "")
  paste0(x$name, "(", paste(values, collapse = ", "), ")")
}

# Parts of the same operator need no parentheses, nor does a mask of one kind.
format_part <- function(mask, operator) {
  text <- format(mask)
  inner <- mask$operator
  if (is.null(inner) || inner == "!" || inner == operator) {
    text
  } else {
    paste0("(", text, ")")
  }
}

format_mask_argument <- function(x) {
  if (is.matrix(x)) {
    return(paste0("<", nrow(x), " x ", ncol(x), " matrix>"))
  }
  if (is.function(x)) {
    return(rule_text(x))
  }
  format(x, digits = 15, scientific = FALSE, trim = TRUE)
}

# A function in one line.
rule_text <- function(f) {
  shorten(paste(trimws(deparse(f)), collapse = " "), 60)
}

#' @export
print.kerasattention_mask <- function(x, ...) {
  cat("<", format(x), ">\n", sep = "")
  invisible(x)
}

# The argument `mask` of a layer.
check_mask_rule <- function(x, arg = caller_arg(x), call = caller_env()) {
  check_alive(x, arg = arg, call = call)
  if (is.null(x) || is_python(x) || is_mask_rule(x)) {
    return(invisible(x))
  }
  hint <- if (is.function(x)) {
    "Call the function, as in `mask_causal()`; your own rule is `mask_function(f)`."
  } else if (is.logical(x) || is.numeric(x)) {
    "Arrays of TRUE and FALSE are for the argument `attention_mask` of the call."
  }
  abort_argument(arg, "a `mask_*()` object, or NULL", x, hint, call)
}

# Whether the query at each of some positions sees each key: TRUE and FALSE, (T, S).
visible_pairs <- function(mask, queries, keys = queries) {
  q <- matrix(queries, length(queries), length(keys))
  k <- matrix(keys, length(queries), length(keys), byrow = TRUE)
  mask$rule(q, k)
}
