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
  # The setting goes before all others.
  if (grepl("in RETICULATE_PYTHON", found[["problem"]] %||% "")) {
    return(list(
      found = "Python was not found.",
      todo = c(name_line, "or name none:", unset_line, own_line(found))
    ))
  }
  list(
    found = paste0("Python was not found.", describe_uv(found)),
    todo = c(
      "Install Keras into a new environment:",
      own_line(found),
      "or name a Python that has Keras:",
      name_line[[2]]
    )
  )
}

name_line <- c(
  "Name a Python that has Keras:",
  "  Sys.setenv(RETICULATE_PYTHON = \"path/to/python\")"
)

unset_line <- "  Sys.unsetenv(\"RETICULATE_PYTHON\")"

own_line <- function(found) {
  backend <- found[["backend"]]
  backend <- if (backend %in% backends) backend else backends[[1]]
  paste0("  kerasattention::install_kerasattention(\"", backend, "\")")
}

# Where no Python is named, reticulate makes an environment with uv.
describe_uv <- function(found) {
  uv <- found[["uv"]]
  if (is.null(uv)) {
    return(" reticulate could not make an environment with uv.")
  }
  old <- utils::compareVersion(found[["reticulate"]], "1.44") < 0
  paste0(
    " uv ",
    uv,
    " could not make an environment.",
    if (old && utils::compareVersion(uv, "0.8") >= 0) {
      paste0(
        " reticulate ",
        found[["reticulate"]],
        " works with uv 0.6.1 to 0.7, reticulate 1.44 with newer ones."
      )
    }
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
    todo = c(
      "In this session:",
      use_line(c(found[["installed_backends"]], "tensorflow")[[1]])
    )
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
        c("or use what is there:", use_line(others[[1]]))
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
  "or name another Python, in a new session:",
  name_line[[2]]
)

# Works after the error, in the same session.
use_line <- function(backend) {
  paste0("  kerasattention::use_backend(\"", backend, "\")")
}

# Environments made by py_require() have no pip, and change only by it.
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
    if (isFALSE(found[["pip"]])) paste0("  ", python, " -m ensurepip"),
    paste(
      c(paste0("  ", python), "-m pip install", options, packages),
      collapse = " "
    )
  )
}
