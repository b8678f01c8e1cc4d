# The way to Python: the module in inst/python, imported once a session, at the
# first use and never before.

the <- new.env(parent = emptyenv())

python_module <- function(call = caller_env()) {
  if (is.null(the$module)) {
    the$module <- import_module(call)
  }
  the$module
}

import_module <- function(call) {
  tryCatch(
    reticulate::import_from_path("kerasattention", python_path()),
    error = function(cnd) {
      message <- python_message(conditionMessage(cnd))
      rlang::abort(
        c(
          "Could not load Keras in Python.",
          x = message,
          i = "Run `attention_sitrep()` to see what is missing."
        ),
        class = "kerasattention_error",
        call = call
      )
    }
  )
}

python_path <- function() system.file("python", package = "kerasattention")

# Calls a function of our module. `doing` completes "Could not ..." in its errors.
call_python <- function(name, ..., doing, call = caller_env()) {
  fun <- python_module(call)[[name]]
  with_python(fun(...), doing, call)
}
