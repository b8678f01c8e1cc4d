# Predicates and sizes of values, for the checkers and the conversions. None fails,
# whatever the value is, and none starts Python. Values with a class attribute (dates, tables,
# time series, integer64) are not plain numbers, logicals or strings.

is_plain_number <- function(x) is.numeric(x) && !is.object(x)

is_number <- function(x) {
  is_plain_number(x) && is_single(x) && is.finite(x)
}

is_single <- function(x) length(x) == 1 && axes_of(x) == 1

is_whole_number <- function(x) is_number(x) && x == trunc(x)

is_flag <- function(x) {
  is.logical(x) && !is.object(x) && is_single(x) && !is.na(x)
}

is_string <- function(x) is_text(x) && is_single(x) && !is.na(x)

# Strings of glue count as plain strings.
is_text <- function(x) {
  is.character(x) && (!is.object(x) || inherits(x, "glue") && !isS4(x))
}

is_plain_list <- function(x) is.list(x) && !is.object(x)

is_numeric_array <- function(x) {
  (is.numeric(x) || is.logical(x)) && !is.object(x)
}

# The numbers and axes of tables and time series are what they seem; their class is about
# labels only.
is_data_array <- function(x) {
  is_numeric_array(x) || inherits(x, c("table", "ts")) && is.numeric(x)
}

# R values that only have the class attribute of a Python object are none.
is_python <- function(x) {
  inherits(x, "python.builtin.object") &&
    (is.function(x) || is.environment(x) && holds_pointer(x))
}

holds_pointer <- function(x) {
  exists("pyobj", envir = x, inherits = FALSE) ||
    exists("module", envir = x, inherits = FALSE)
}

# FALSE for Python objects that were saved and read in another session.
is_alive <- function(x) {
  is_python(x) &&
    tryCatch(!reticulate::py_is_null_xptr(x), error = function(cnd) FALSE)
}

is_sequential <- function(x) {
  is_python(x) && inherits(x, "keras.src.models.sequential.Sequential")
}

is_model <- function(x) {
  is_python(x) && inherits(x, "keras.src.models.model.Model")
}

is_layer <- function(x) {
  is_python(x) && inherits(x, "keras.src.layers.layer.Layer")
}

is_attention_layer <- function(x) {
  is_python(x) && inherits(x, "kerasattention.AttentionLayer")
}

# A tensor of Keras or of a backend, a variable or a NumPy array. Modules and classes may have
# an attribute `shape`, but are no tensors.
is_tensor <- function(x) {
  is_alive(x) &&
    !is_layer(x) &&
    !inherits(x, c("python.builtin.module", "python.builtin.type")) &&
    reticulate::py_has_attr(x, "shape")
}

# Python objects that Keras converts to tensors.
is_array_like <- function(x) {
  is_tensor(x) ||
    is_alive(x) && inherits(x, c("python.builtin.list", "python.builtin.tuple"))
}

# Values that reticulate can convert: plain vectors, functions, live Python objects, and plain
# lists of them. It cannot convert pointers, connections, environments, formulas and S4 objects.
is_convertible <- function(x) {
  if (is_python(x)) {
    return(is_alive(x))
  }
  if (is.list(x)) {
    return(!is.object(x) && all(vapply(x, is_convertible, NA)))
  }
  is.null(x) || is.function(x) || is.atomic(x) && !is.object(x)
}

# "Dense" of "keras.src.layers.core.dense.Dense"
python_class <- function(x) sub("^.*\\.", "", class(x)[[1]])

# A vector has one axis.
dim_of <- function(x) if (is.null(dim(x))) length(x) else dim(x)

axes_of <- function(x) length(dim_of(x))

# The sizes of an array or tensor, NA where a symbolic tensor leaves them open;
# NULL where nothing is known.
shape_of <- function(x) {
  if (!is_python(x)) {
    return(dim_of(x))
  }
  tryCatch(
    {
      sizes <- reticulate::import_builtins()$list(x$shape)
      vapply(
        sizes,
        function(n) if (is.null(n)) NA_integer_ else as.integer(n),
        1L
      )
    },
    error = function(cnd) NULL
  )
}

differ <- function(a, b) isTRUE(a != b)
