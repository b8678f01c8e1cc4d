# Why Keras cannot be used, and the line to type: advice for errors at the first use of a layer
# and for attention_sitrep(). `found` comes from find_installation(); it is read with `[[`, which
# matches names exactly.

diagnose <- function(found) {
  if (is.null(found[["python"]])) {
    diagnose_python(found)
  } else if (is.null(found[["keras"]])) {
    diagnose_keras(found)
  } else if (is_too_old(found[["keras"]])) {
    diagnose_old_keras(found)
  } else if (!found[["backend"]] %in% backends) {
    diagnose_unknown_backend(found)
  } else if (is.null(found[["backend_version"]])) {
    diagnose_backend(found)
  } else {
    list(
      found = paste(
        "Keras",
        found[["keras"]],
        "could not be loaded in",
        in_python(found)
      ),
      todo = install_line(found, c("keras", found[["backend"]]), upgrade = TRUE)
    )
  }
}

diagnose_python <- function(found) {
  packages <- paste0("c(\"keras\", \"", found[["backend"]], "\")")
  list(
    found = "Python was not found.",
    todo = c(
      "Name one that has Keras, in a new session:",
      "  Sys.setenv(RETICULATE_PYTHON = \"path/to/python\")",
      "or let reticulate make one:",
      paste0(
        "  reticulate::virtualenv_create(\"r-reticulate\", packages = ",
        packages,
        ")"
      )
    )
  )
}

diagnose_keras <- function(found) {
  missing <- c(
    "keras",
    if (is.null(found[["backend_version"]])) found[["backend"]]
  )
  list(
    found = paste("Keras was not found in", in_python(found)),
    todo = c(install_line(found, missing), choose_line)
  )
}

diagnose_old_keras <- function(found) {
  list(
    found = paste0(
      "Keras ",
      found[["keras"]],
      " is too old, ",
      oldest_keras,
      " or newer is needed, in ",
      in_python(found)
    ),
    todo = c(install_line(found, "keras", upgrade = TRUE), choose_line)
  )
}

diagnose_unknown_backend <- function(found) {
  list(
    found = paste0(
      "KERAS_BACKEND must be tensorflow, jax or torch, not \"",
      found[["backend"]],
      "\"."
    ),
    todo = backend_line(c(found[["installed_backends"]], "tensorflow")[[1]])
  )
}

diagnose_backend <- function(found) {
  others <- found[["installed_backends"]]
  list(
    found = paste0(
      "The backend \"",
      found[["backend"]],
      "\" was not found in ",
      in_python(found)
    ),
    todo = c(
      install_line(found, found[["backend"]]),
      if (length(others) > 0) {
        c("or use what is there:", backend_line(others[[1]])[[2]])
      }
    )
  )
}

in_python <- function(found) {
  paste0("Python ", found[["python_version"]], " (", where_python(found), ").")
}

where_python <- function(found) {
  paste0(
    found[["python"]],
    if (!is.null(found[["chosen_by"]])) {
      paste0(", chosen by ", sub(" function$", "", found[["chosen_by"]]))
    }
  )
}

choose_line <- c(
  "or choose another Python, in a new session:",
  "  reticulate::use_virtualenv(\"path/to/environment\")"
)

backend_line <- function(backend) {
  c(
    "In a new session:",
    paste0("  Sys.setenv(KERAS_BACKEND = \"", backend, "\")")
  )
}

# Environments made by py_require() have no pip.
install_line <- function(found, packages, upgrade = FALSE) {
  if (isTRUE(found[["managed"]])) {
    line <- paste0("  reticulate::py_require(", deparse1(packages), ")")
    return(c("In a new session:", line))
  }
  python <- found[["python"]]
  if (grepl(" ", python, fixed = TRUE)) {
    python <- paste0("\"", python, "\"")
  }
  options <- if (upgrade) "--upgrade"
  c(
    "In a terminal, then restart R:",
    paste(
      c(paste0("  ", python), "-m pip install", options, packages),
      collapse = " "
    )
  )
}
