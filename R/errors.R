# Every error of this package is a condition of class `kerasattention_error`:
#
#   abort_argument()  an argument is wrong: names it, the rule and the value
#   abort()           anything else that is wrong
#   with_python()     runs code that calls Python; Python's exception becomes one
#                     condition with Python's message and nothing else
#
# `call` is the frame of the exported function, so that the error names the user's call. Every
# helper takes it as an argument, `call = caller_env()`, and passes it on.

abort_argument <- function(arg, rule, value, hint = NULL, call = caller_env()) {
  abort(
    "{.arg {arg}} must be {rule}, not {describe_value(value)}.",
    hint = hint %||% conversion_hint(value, arg),
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
  signal_error(bullets, call, ...)
}

# The backtrace ends with the user's call: what is called below it is ours.
signal_error <- function(bullets, call, ...) {
  on_stack <- vapply(sys.frames(), identical, NA, call)
  rlang::abort(
    bullets,
    class = "kerasattention_error",
    call = call,
    ...,
    trace = if (any(on_stack)) rlang::trace_back(bottom = call)
  )
}

# Runs `code`. A Python exception becomes a kerasattention_error with the exception's class in
# its field `python_class`. Other errors of R become a kerasattention_error too: reticulate
# cannot convert a value, or an R function that Python called fails. A KeyboardInterrupt becomes
# R's interrupt, also where Python has wrapped it in another exception.
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

# Some backends raise another exception from the KeyboardInterrupt that ended a step.
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
  bullets <- index_message(cnd) %||%
    c(paste0("Could not ", doing, "."), x = message)
  signal_error(
    bullets,
    call,
    python_class = python_class(cnd),
    python_message = message
  )
}

# Exceptions about indices of layers, heads and queries, which Python counts from 0 and R
# from 1. NULL for others.
index_message <- function(cnd) {
  exception <- attr(cnd, "py_object") %||% cnd
  if (inherits(cnd, "kerasattention.checks.OutOfRangeError")) {
    return(out_of_range_message(exception))
  }
  if (inherits(cnd, "kerasattention.checks.UnknownLayerError")) {
    unknown_layer_message(exception)
  }
}

out_of_range_message <- function(exception) {
  arg <- exception$argument
  if (arg == "rows") {
    arg <- "queries"
  }
  layer <- exception$layer
  sprintf(
    "`%s` must be whole numbers from 1 to %d%s, not `%d`.",
    arg,
    exception$count,
    if (is.null(layer)) "" else paste0(" in layer \"", layer, "\""),
    exception$index + 1L
  )
}

unknown_layer_message <- function(exception) {
  layer <- exception$layer
  known <- paste0("\"", unlist(exception$known), "\"")
  rule <- if (is.character(layer)) {
    "names of attention layers"
  } else {
    paste("numbers of attention layers, from 1 to", length(known))
  }
  given <- if (is.character(layer)) paste0("\"", layer, "\"") else layer + 1L
  known <- shorten(paste(known, collapse = ", "), 400)
  c(
    sprintf("`%s` must be %s, not `%s`.", exception$argument, rule, given),
    i = paste0("The model has ", known, ".")
  )
}

abort_r <- function(cnd, doing, call) {
  message <- paste(conditionMessage(cnd), collapse = "\n")
  bullets <- c(paste0("Could not ", doing, "."), x = message)
  signal_error(bullets, call, r_error = cnd)
}

# Python's message without terminal colours, reticulate's advice, the module of the exception's
# class and the arguments (whole arrays) that Keras prints. Long messages of backends are cut.
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
  x <- as_r_syntax(gsub("\n{2,}", "\n", trimws(x)))
  if (nchar(x) > 2000) {
    x <- paste0(substr(x, 1, 2000), " ...")
  }
  x
}

# Python's ['a', 'b'] and [1, 2] become "a", "b" and 1, 2; `flag=True` becomes `flag = TRUE`.
as_r_syntax <- function(x) {
  strings <- "(?<![\\[\\w=])\\[('[^'\\[\\]]*'(, '[^'\\[\\]]*')*)\\](?!\\])"
  lists <- regmatches(x, gregexpr(strings, x, perl = TRUE))
  regmatches(x, gregexpr(strings, x, perl = TRUE)) <- lapply(
    lists,
    function(list) {
      gsub("'", "\"", gsub("[][]", "", list))
    }
  )
  numbers <- "(?<![\\[\\w=])\\[(-?[\\d.]+(, -?[\\d.]+)*)\\](?!\\])"
  x <- gsub(numbers, "\\1", x, perl = TRUE)
  x <- gsub("`None`", "`NULL`", x, fixed = TRUE)
  x <- gsub("`(\\w+)=True`", "`\\1 = TRUE`", x)
  x <- gsub("`(\\w+)=False`", "`\\1 = FALSE`", x)
  gsub("`(\\w+)=None`", "`\\1 = NULL`", x)
}
