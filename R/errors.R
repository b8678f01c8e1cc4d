# Every error of this package is a condition of class `kerasattention_error`:
#
#   abort_argument()  an argument is wrong: names it, the rule and the value
#   abort()           anything else that is wrong
#   with_python()     runs code that calls Python; Python's exception becomes one
#                     condition with Python's message and nothing else
#
# `call` is the frame of the exported function, so that the error names what the
# user typed: take it as an argument, `call = caller_env()`, and hand it on.

abort_argument <- function(arg, rule, value, hint = NULL, call = caller_env()) {
  abort(
    "{.arg {arg}} must be {rule}, not {describe_value(value)}.",
    hint = hint,
    arg = arg,
    call = call
  )
}

# `message` is interpolated by cli in the frame of the caller, `hint` is plain text.
abort <- function(
  message,
  ...,
  hint = NULL,
  call = caller_env(),
  env = caller_env()
) {
  text <- cli::format_inline(message, .envir = env)
  hint <- as.character(hint)
  names(hint) <- rep("i", length(hint))
  bullets <- c(text, hint)
  rlang::abort(bullets, class = "kerasattention_error", call = call, ...)
}

# What the user passed, in a few words: `64.5`, `NA`, a 3 x 4 logical matrix. Never an
# error itself, whatever methods the value's class has.
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
  paste("a", class, "of shape", show_shape(shape))
}

describe_array <- function(x) {
  kind <- if (length(dim(x)) == 2) "matrix" else "array"
  paste("a", paste(dim(x), collapse = " x "), typeof(x), kind)
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

# Integers are shown as the user reads them, without L, and names are dropped.
as_plain <- function(x) {
  x <- as.vector(x)
  names(x) <- NULL
  if (is.integer(x)) as.numeric(x) else x
}

# Runs `code`. An exception of Python becomes a kerasattention_error whose field
# `python_class` holds the exception's class; so does an error of R that is not ours
# yet: of a value that reticulate cannot convert, or of a function that Python called.
# A KeyboardInterrupt is what R calls an interrupt, also where Python has wrapped it.
with_python <- function(code, doing, call = caller_env()) {
  # One handler for all: an error within a handler is caught by those beside it.
  tryCatch(code, error = function(cnd) {
    if (inherits(cnd, "kerasattention_error")) {
      rlang::cnd_signal(cnd)
    } else if (is_interrupt(cnd)) {
      rlang::interrupt()
    } else if (inherits(cnd, "python.builtin.BaseException")) {
      abort_python(cnd, doing, call)
    } else {
      abort_r(cnd, doing, call)
    }
  })
}

# Backends raise errors of their own from the KeyboardInterrupt that ended a step.
is_interrupt <- function(cnd) {
  exception <- attr(cnd, "py_object") %||% cnd
  for (i in seq_len(10)) {
    if (inherits(exception, "python.builtin.KeyboardInterrupt")) {
      return(TRUE)
    }
    if (!is_alive(exception)) {
      return(FALSE)
    }
    exception <- exception$`__cause__` %||% exception$`__context__`
  }
  FALSE
}

abort_python <- function(cnd, doing, call) {
  message <- python_message(conditionMessage(cnd))
  rlang::abort(
    c(paste0("Could not ", doing, "."), x = message),
    class = "kerasattention_error",
    python_class = python_class(cnd),
    python_message = message,
    call = call
  )
}

abort_r <- function(cnd, doing, call) {
  message <- paste(conditionMessage(cnd), collapse = "\n")
  rlang::abort(
    c(paste0("Could not ", doing, "."), x = message),
    class = "kerasattention_error",
    r_error = cnd,
    call = call
  )
}

# Python's message alone: without terminal colours, without reticulate's advice,
# without the module of the exception's class, without the printed arguments (whole
# arrays) that Keras adds, and cut where a backend adds pages of its own.
python_message <- function(x) {
  x <- cli::ansi_strip(x)
  x <- gsub("\nRun `reticulate::py_last_error\\(\\)` for details\\.", "", x)
  x <- sub("(?s)\n+Arguments received by .*$", "", x, perl = TRUE)
  x <- sub("^([\\w.]+\\.)?(\\w+: )", "\\2", x, perl = TRUE)
  x <- sub(
    "^(\\w+: )?Exception encountered when calling [^\n]*\n+",
    "\\1",
    x,
    perl = TRUE
  )
  x <- sub(
    "(?s)\n*Traceback \\(most recent call last\\):.*$",
    "",
    x,
    perl = TRUE
  )
  x <- gsub("\n{2,}", "\n", trimws(x))
  if (nchar(x) > 2000) {
    x <- paste0(substr(x, 1, 2000), " ...")
  }
  x
}
