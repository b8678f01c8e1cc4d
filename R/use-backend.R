#' Choose the backend of Keras
#'
#' Keras runs on TensorFlow, JAX or PyTorch, and reads the choice when it is loaded. Call
#' `use_backend()` before you make the first layer of a session. After an error that says that a
#' backend was not found, it also works in the same session.
#'
#' Without it, Keras takes the backend of the environment variable `KERAS_BACKEND`, then that of its
#' file `~/.keras/keras.json`, then TensorFlow. Where neither names a backend and TensorFlow is not
#' installed, the package selects one that is, and says so. To choose a backend for every session,
#' write `KERAS_BACKEND=jax` in `~/.Renviron` (`usethis::edit_r_environ()` opens it).
#'
#' Where keras3 is loaded, its function of the same name is called too, because keras3 asks for
#' the Python packages of its backend.
#'
#' @param backend `"tensorflow"`, `"jax"` or `"torch"`.
#'
#' @returns `backend`, invisibly. It is an error if Keras has been loaded with another backend.
#' @seealso [install_kerasattention()] installs a backend, [attention_sitrep()] shows the one in
#'   use.
#' @export
#' @examplesIf kerasattention:::can_run_examples()
#' # The backend of this session is already chosen: the call changes nothing.
#' keras <- reticulate::import("keras")
#' use_backend(keras$config$backend())
use_backend <- function(backend) {
  check_required(backend)
  check_choice(backend, backends)
  check_not_loaded(backend)
  if (is.null(loaded_backend())) {
    set_backend(backend)
  }
  invisible(backend)
}

check_not_loaded <- function(backend, call = caller_env()) {
  loaded <- loaded_backend()
  if (is.null(loaded) || loaded == backend) {
    return(invisible())
  }
  abort(
    "Keras already runs on {loaded} in this session, and cannot change to {backend}.",
    hint = paste0(
      "Restart R, then type `kerasattention::use_backend(\"",
      backend,
      "\")` before Keras is loaded."
    ),
    call = call
  )
}

# Python read the environment when it was started, and is told too.
set_backend <- function(backend) {
  Sys.setenv(KERAS_BACKEND = backend)
  if (isNamespaceLoaded("keras3")) {
    getExportedValue("keras3", "use_backend")(backend)
  }
  if (!is.null(the$backend_file)) {
    the$backend_file$set_backend(backend)
  }
  update_requirements()
}
