# Which backend Keras will choose, and what is asked of reticulate for those who have
# named no Python of their own: it then makes an environment with these packages.

backends <- c("tensorflow", "jax", "torch")

require_python <- function() {
  the$required <- python_requirements()
  reticulate::py_require(the$required)
}

# keras3 chooses the backend where it is loaded, and asks for its packages.
python_requirements <- function(
  backend = wanted_backend(),
  loaded = loadedNamespaces()
) {
  known <- backend %in% backends && !"keras3" %in% loaded
  c(paste0("keras>=", oldest_keras), "numpy>=1.26", if (known) backend)
}

# KERAS_BACKEND may have been set after the package was loaded. What has been asked for
# goes, unless Python has it: two backends are a large download.
update_requirements <- function() {
  wanted <- python_requirements()
  before <- the$required
  if (all(wanted %in% before)) {
    return(invisible())
  }
  if (!reticulate::py_available()) {
    reticulate::py_require(setdiff(before, wanted), action = "remove")
    reticulate::py_require(wanted)
  } else if (is_managed()) {
    reticulate::py_require(setdiff(wanted, before))
  }
  the$required <- wanted
}

# What Keras would choose, as far as can be said without it.
wanted_backend <- function() {
  backend <- Sys.getenv("KERAS_BACKEND")
  if (nzchar(backend)) backend else configured_backend() %||% "tensorflow"
}

# Keras writes its choice into a file of the user.
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
