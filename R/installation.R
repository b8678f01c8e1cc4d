# Facts of the installation: the versions of R packages, the Python that reticulate chose,
# its packages, and the backend that Keras will choose. Nothing here loads Keras.

backends <- c("tensorflow", "jax", "torch")

# The version that inst/python/pyproject.toml requires.
oldest_keras <- "3.15"

# The part of attention_sitrep()'s list that is known without loading Keras.
find_installation <- function() {
  # Which backend depends on what is installed in this Python.
  no_python <- start_python()
  found <- list(
    package = version_of("kerasattention"),
    r = paste0(getRversion(), ", ", utils::osVersion),
    reticulate = version_of("reticulate"),
    keras3 = version_of("keras3"),
    backend = wanted_backend()
  )
  if (!is.null(no_python)) {
    return(c(found, uv = uv_version(), problem = no_python))
  }
  c(found, find_python(), find_packages(found[["backend"]]))
}

version_of <- function(package) {
  tryCatch(
    as.character(utils::packageVersion(package)),
    error = function(cnd) NULL
  )
}

# The backend that Keras will run on.
wanted_backend <- function() {
  backend <- Sys.getenv("KERAS_BACKEND")
  if (nzchar(backend)) {
    return(backend)
  }
  selected_backend() %||% configured_backend() %||% "tensorflow"
}

# The backend in Keras's configuration file.
configured_backend <- function() {
  folder <- Sys.getenv("KERAS_HOME", file.path("~", ".keras"))
  file <- file.path(folder, "keras.json")
  if (!file.exists(file)) {
    return(NULL)
  }
  text <- paste(readLines(file, warn = FALSE), collapse = " ")
  pattern <- "^.*\"backend\" *: *\"([a-z]+)\".*$"
  if (grepl(pattern, text)) sub(pattern, "\\1", text)
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

# The uv that reticulate finds first.
uv_version <- function() {
  named <- c(Sys.getenv("RETICULATE_UV"), getOption("reticulate.uv_binary"))
  uv <- Filter(
    nzchar,
    c(named, Sys.which("uv"), path.expand("~/.local/bin/uv"))
  )
  uv <- Filter(file.exists, uv)
  if (length(uv) == 0) {
    return(NULL)
  }
  said <- system2(uv[[1]], "--version", stdout = TRUE, stderr = FALSE)
  sub("^uv ([0-9.]+).*$", "\\1", said[[1]])
}

find_python <- function() {
  config <- reticulate::py_config()
  version <- as.character(config$version_string %||% config$version)
  list(
    python = config$python,
    python_version = sub(" .*$", "", version),
    chosen_by = if (is_managed()) "py_require()" else config$forced
  )
}

# Whether reticulate made the environment, from the packages of py_require().
is_managed <- function() isTRUE(reticulate::py_config()$ephemeral)

find_packages <- function(backend) {
  known <- Filter(function(name) !is.null(backend_version(name)), backends)
  list(
    numpy = python_version_of("numpy"),
    keras = python_version_of("keras"),
    backend_version = backend_version(backend),
    installed_backends = known,
    managed = is_managed(),
    pip = !is.null(python_version_of("pip"))
  )
}

# The version of an installed Python package, without importing it.
python_version_of <- function(package) {
  metadata <- reticulate::import("importlib.metadata")
  tryCatch(metadata$version(package), error = function(cnd) NULL)
}

# TensorFlow is published under several names, some for one kind of machine.
backend_version <- function(backend) {
  for (name in paste0(backend, c("", "-cpu", "_cpu", "-intel", "-macos"))) {
    version <- python_version_of(name)
    if (!is.null(version)) {
      return(version)
    }
  }
  NULL
}

is_too_old <- function(keras) {
  release <- sub("[^0-9.].*$", "", keras)
  utils::compareVersion(release, oldest_keras) < 0
}
