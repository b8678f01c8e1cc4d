# The Python packages that reticulate is asked for. Where the user has named no Python, it makes
# an environment with them.

require_python <- function() {
  the$required <- python_requirements()
  reticulate::py_require(the$required)
}

# Where keras3 is loaded, it chooses the backend and asks for its packages.
python_requirements <- function(
  backend = wanted_backend(),
  loaded = loadedNamespaces()
) {
  known <- backend %in% backends && !"keras3" %in% loaded
  c(paste0("keras>=", oldest_keras), "numpy>=1.26", if (known) backend)
}

# KERAS_BACKEND may have been set after the package was loaded. The former backend is no longer
# asked for, unless Python is running with it: two backends are a large download.
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
