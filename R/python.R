# The Python module in inst/python. It is imported once in a session, at its first use.

python_module <- function(call = caller_env()) {
  if (is.null(the$module)) {
    the$module <- import_module(call)
  }
  the$module
}

import_module <- function(call) {
  tryCatch(
    import_once(),
    error = function(cnd) {
      abort_installation(python_message(conditionMessage(cnd)), call)
    }
  )
}

# The import loads Keras, whose load hook (R/layer-object.R) imports the module. `importing`
# ends this loop where the import fails.
import_once <- function() {
  the$importing <- TRUE
  on.exit(the$importing <- FALSE)
  update_requirements()
  module <- reticulate::import_from_path("kerasattention", python_path())
  version <- reticulate::import("keras")$`__version__`
  if (is_too_old(version)) {
    stop("Keras ", version, " is too old.")
  }
  module
}

# The error says what is missing, where, and the line to type: see R/advice.R.
abort_installation <- function(python_message, call) {
  advice <- diagnose(find_installation())
  todo <- paste(advice$todo, collapse = "\n")
  rlang::abort(
    c(
      advice$found,
      x = python_message,
      i = todo,
      i = "`attention_sitrep()` shows what is installed."
    ),
    class = "kerasattention_error",
    python_message = python_message,
    call = call
  )
}

python_path <- function() system.file("python", package = "kerasattention")

# Calls a function of our module. `doing` completes "Could not ..." in its errors.
call_python <- function(name, ..., doing, call = caller_env()) {
  with_python(python_function(name, call)(...), doing, call)
}

# Stored, because reticulate makes a new R function at each access.
python_function <- function(name, call) {
  if (is.null(the$functions[[name]])) {
    the$functions[[name]] <- python_module(call)[[name]]
  }
  the$functions[[name]]
}
