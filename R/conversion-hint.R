# The way out for values of classes that an argument does not take: the line that converts
# them. NULL for other values.

conversion_hint <- function(x, arg) {
  if (lost_integer64(x)) {
    return(paste(
      "Convert numbers of class <integer64> by `as.numeric()` first;",
      "`matrix()` and `array()` take away their class only."
    ))
  }
  to <- conversion_of(x, arg)
  if (!is.null(to)) paste0("Convert it first: ", to, ".")
}

conversion_of <- function(x, arg) {
  call <- function(f, ...) {
    paste0("`", f, "(", paste(c(arg, ...), collapse = ", "), ")`")
  }
  # `as.numeric()` takes away the axes.
  numeric <- function(...) {
    code <- paste0("as.numeric(", paste(c(arg, ...), collapse = ", "), ")")
    if (length(dim(x)) < 2) {
      return(code)
    }
    paste0("array(", code, ", dim(", arg, "))")
  }
  if (inherits(x, "Matrix")) {
    call("as.matrix")
  } else if (inherits(x, "integer64")) {
    paste0("`", numeric(), "` with the package bit64 loaded")
  } else if (inherits(x, "difftime")) {
    paste0("`", numeric('units = "days"'), "`")
  } else if (inherits(x, "Date")) {
    paste0("`", numeric(), "` gives days")
  } else if (inherits(x, "POSIXct")) {
    paste0("`", numeric(), " / 86400` gives days")
  } else if (inherits(x, c("table", "ts"))) {
    if (length(dim(x)) > 1) {
      call("array", paste0("dim(", arg, ")"))
    } else {
      call("as.vector")
    }
  }
}

# Whether numbers are the bits of 64-bit integers, read as doubles: such doubles are so small
# that no data has only those.
lost_integer64 <- function(x) {
  if (!is.double(x) || is.object(x)) {
    return(FALSE)
  }
  is_normal <- function(x) abs(x) >= .Machine$double.xmin & is.finite(x)
  if (any(is_normal(x[seq_len(min(100, length(x)))]))) {
    return(FALSE)
  }
  any(x != 0, na.rm = TRUE) && !any(is_normal(x) | is.infinite(x))
}
