#' Show which Python, Keras and backend the layers run on
#'
#' Starts Python if it is not running, says what it found, and what to do if
#' something is missing.
#'
#' @returns Invisibly, a list of what was found: `package`, `reticulate`, `python`
#'   (its path), `python_version`, `keras`, `backend`, `backend_version`, `numpy`, each
#'   a string or `NULL`, and `problem`, a string or `NULL` if all is well.
#' @seealso [layer_group_query_attention()]
#' @export
#' @examplesIf kerasattention:::can_run_examples()
#' attention_sitrep()
attention_sitrep <- function() {
  found <- find_installation()
  writeLines(format_sitrep(found))
  invisible(found)
}

find_installation <- function() {
  found <- list(
    package = as.character(utils::packageVersion("kerasattention")),
    reticulate = as.character(utils::packageVersion("reticulate")),
    backend = wanted_backend()
  )
  problem <- start_python()
  if (!is.null(problem)) {
    return(c(found, problem = problem))
  }
  config <- reticulate::py_config()
  found$python <- config$python
  found$python_version <- as.character(
    config$version_string %||% config$version
  )
  found$python_version <- sub(" .*$", "", found$python_version)
  found$numpy <- python_version_of("numpy")
  found$keras <- python_version_of("keras")
  problem <- try_module()
  if (is.null(problem)) {
    found$backend <- reticulate::import("keras")$backend$backend()
  }
  found$backend_version <- backend_version(found$backend)
  c(found, problem = problem)
}

start_python <- function() {
  tryCatch(
    {
      reticulate::py_config()
      NULL
    },
    error = function(cnd) python_message(conditionMessage(cnd))
  )
}

try_module <- function() {
  tryCatch(
    {
      python_module()
      NULL
    },
    error = function(cnd) cnd$body[["x"]] %||% conditionMessage(cnd)
  )
}

# The version of an installed Python package, without importing it.
python_version_of <- function(package) {
  metadata <- reticulate::import("importlib.metadata")
  tryCatch(metadata$version(package), error = function(cnd) NULL)
}

# TensorFlow is published under several names.
backend_version <- function(backend) {
  for (name in c(
    backend,
    paste0(backend, c("-cpu", "_cpu", "-intel", "-macos"))
  )) {
    version <- python_version_of(name)
    if (!is.null(version)) {
      return(version)
    }
  }
  NULL
}

# What Keras would choose, as far as can be said without it.
wanted_backend <- function() {
  backend <- Sys.getenv("KERAS_BACKEND")
  if (nzchar(backend)) backend else "tensorflow"
}

format_sitrep <- function(found) {
  state <- if (is.null(found$problem)) "ready" else "not ready"
  c(
    paste0("kerasattention ", found$package, ": ", state),
    paste0("  reticulate  ", found$reticulate),
    paste0("  Python      ", or_missing(found$python_version, found$python)),
    paste0("  NumPy       ", or_missing(found$numpy)),
    paste0("  Keras       ", or_missing(found$keras)),
    paste0(
      "  backend     ",
      found$backend,
      " ",
      or_missing(found$backend_version)
    ),
    if (!is.null(found$problem)) c("", advise(found))
  )
}

or_missing <- function(version, path = NULL) {
  if (is.null(version)) {
    return("not found")
  }
  if (is.null(path)) version else paste0(version, ", ", path)
}

advise <- function(found) {
  missing <- c(
    if (is.null(found$keras)) "keras",
    if (is.null(found$backend_version)) found$backend
  )
  todo <- if (is.null(found$python)) {
    c(
      "Python was not found. Either name one that has Keras, before Python starts:",
      '  Sys.setenv(RETICULATE_PYTHON = "path/to/python")',
      "or let reticulate make an environment with it:",
      paste0(
        '  reticulate::virtualenv_create("r-keras", packages = c("keras", "',
        found$backend,
        '"))'
      )
    )
  } else if (length(missing) > 0) {
    c(
      "Install what is missing into this Python, then start R anew:",
      paste0(
        "  ",
        found$python,
        " -m pip install ",
        paste(missing, collapse = " ")
      ),
      "To use another backend, set KERAS_BACKEND to tensorflow, jax or torch",
      "before Keras is loaded."
    )
  } else {
    "Keras is installed, but could not be loaded. Update it, or choose another Python."
  }
  c("Python said:", paste0("  ", strsplit(found$problem, "\n")[[1]]), "", todo)
}

# Whether examples and the vignette have what they need. Never installs anything:
# where no Python with Keras has been named or is running, the answer is no.
can_run_examples <- function() {
  named <- c("RETICULATE_PYTHON", "RETICULATE_PYTHON_ENV", "VIRTUAL_ENV")
  if (!reticulate::py_available() && !any(nzchar(Sys.getenv(named)))) {
    return(FALSE)
  }
  is.null(start_python()) && is.null(try_module())
}
