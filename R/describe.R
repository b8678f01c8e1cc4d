# Values, shapes and counts in words, for messages and printed lines.

# A value in a few words: `64.5`, `NA`, a 3 x 4 logical matrix. Never fails, whatever methods
# the value's class has.
describe_value <- function(x) {
  tryCatch(describe_any(x), error = function(cnd) describe_class(x))
}

describe_any <- function(x) {
  if (is_python(x)) {
    return(describe_python(x))
  }
  if (is.data.frame(x)) {
    return("a data frame")
  }
  if (is.function(x)) {
    return("a function")
  }
  if (lost_integer64(x)) {
    return("numbers of class <integer64> that have lost their class")
  }
  if (is.factor(x)) {
    return(paste("a factor of length", length(x)))
  }
  if (is.object(x) && !is_text(x)) {
    return(describe_class(x))
  }
  if (is.atomic(x) && length(dim(x)) > 1) {
    return(describe_array(x))
  }
  if (is.atomic(x) && length(x) <= 5) {
    return(paste0("`", shorten(deparse1(as_plain(x)), 200), "`"))
  }
  if (is.atomic(x)) {
    return(paste0("a vector of ", length(x), " ", typeof(x), " values"))
  }
  if (is.list(x)) {
    return(describe_list(x))
  }
  describe_class(x)
}

describe_class <- function(x) {
  class <- class(x)[[1]]
  paste(
    "an object of class",
    if (is.object(x)) paste0("<", class, ">") else class
  )
}

describe_python <- function(x) {
  class <- paste0("<", python_class(x), ">")
  if (!is_alive(x)) {
    return(paste("a Python object of class", class, "from another R session"))
  }
  shape <- if (is_tensor(x)) shape_of(x)
  if (is.null(shape)) {
    return(paste("a Python object of class", class))
  }
  paste(article(class), class, "of shape", show_shape(shape))
}

describe_array <- function(x) {
  kind <- if (length(dim(x)) == 2) "matrix" else "array"
  shape <- paste(dim(x), collapse = " x ")
  paste(article(shape), shape, typeof(x), kind)
}

# "an" before text that is spoken with a vowel first: <EagerTensor>, <ndarray>, 8, 11, 80.
article <- function(text) {
  vowel <- grepl("^<?([AEIOaeio]|ndarray|8|1[18]([0-9]{3})*( |$))", text)
  if (vowel) "an" else "a"
}

describe_list <- function(x) {
  names <- names(x)
  if (is.null(names)) {
    return(paste("a list of length", length(x)))
  }
  more <- if (length(x) > 8) ", ..."
  shown <- shorten(
    paste0("`", utils::head(names, 8), "`", collapse = ", "),
    200
  )
  paste0("a list with elements ", shown, more)
}

# Integers are shown without L, vectors without names.
as_plain <- function(x) {
  x <- as.vector(x)
  names(x) <- NULL
  if (is.integer(x)) as.numeric(x) else x
}

show_shape <- function(sizes) {
  paste0("(", paste(ifelse(is.na(sizes), "?", sizes), collapse = ", "), ")")
}

shorten <- function(text, width) {
  if (nchar(text) <= width) text else paste0(substr(text, 1, width - 3), "...")
}

plural <- function(n) if (n == 1) "" else "s"
