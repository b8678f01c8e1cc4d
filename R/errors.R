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
  rlang::abort(bullets, class = "kerasattention_error", call = call, ...)
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
  x <- gsub("\n{2,}", "\n", trimws(x))
  if (nchar(x) > 2000) {
    x <- paste0(substr(x, 1, 2000), " ...")
  }
  x
}
