# The backend of the running Python. Two files of our Python module do what must be done before
# Keras is loaded: _backend.py selects a backend, _messages.py keeps TensorFlow silent. R runs them
# as soon as Python is started, by themselves, because the module imports Keras.

# Runs after Python was started.
before_keras <- function(
  folder = system.file("python", "kerasattention", package = "kerasattention")
) {
  rlang::try_fetch(
    {
      the$backend_file <- load_file("_backend", folder)
      the$finder <- the$backend_file$install_finder(announce = FALSE)
      load_file("_messages", folder)$install_finder()
    },
    error = function(cnd) {
      cli::cli_warn(
        c(
          "Python files of the package could not be loaded when Python was started.",
          "i" = "Where the environment variable KERAS_BACKEND is not set, Keras runs on TensorFlow."
        ),
        parent = cnd,
        class = "kerasattention_warning"
      )
    }
  )
  invisible()
}

load_file <- function(name, folder) {
  importlib <- reticulate::import("importlib.util")
  file <- file.path(folder, paste0(name, ".py"))
  spec <- importlib$spec_from_file_location(
    paste0("kerasattention", name),
    file
  )
  module <- importlib$module_from_spec(spec)
  spec$loader$exec_module(module)
  module
}

# The backend to use in TensorFlow's place: one that is installed, where none was named. NULL
# before Python is started.
selected_backend <- function() {
  if (!is.null(the$backend_file)) the$backend_file$selected_backend()
}

# Runs after Keras was loaded.
announce_backend <- function() {
  backend <- the$finder$selected
  if (!is.null(backend) && !isTRUE(the$announced)) {
    the$announced <- TRUE
    cli::cli_inform(
      c(
        "i" = "Keras runs on {backend}: TensorFlow is not installed. See {.code ?use_backend}."
      ),
      class = "kerasattention_message"
    )
  }
}

# NULL before Keras is loaded.
loaded_backend <- function() {
  if (reticulate::py_available() && "keras" %in% loaded_modules()) {
    reticulate::import("keras")$config$backend()
  }
}

loaded_modules <- function() names(reticulate::import("sys")$modules)
