#' Show which Python, Keras and backend the layers run on
#'
#' Starts Python if it is not running, says what it found, and what to do if
#' something is missing. Paste it into a bug report.
#'
#' @returns Invisibly, a list of what was found, each a string or `NULL`: `package`, `r`,
#'   `reticulate`, `keras3` (the R package), `python` (its path), `python_version`,
#'   `chosen_by` (what chose this Python), `numpy`, `keras`, `backend`,
#'   `backend_version`, `devices`, and `problem`, `NULL` if all is well.
#' @seealso [layer_group_query_attention()]
#' @export
#' @examplesIf kerasattention:::can_run_examples()
#' attention_sitrep()
attention_sitrep <- function() {
  found <- find_installation()
  writeLines(format_sitrep(found))
  invisible(found)
}

# `problem`: Python's message where the module has been tried already.
find_installation <- function(problem = NULL) {
  found <- list(
    package = version_of("kerasattention"),
    r = paste0(getRversion(), ", ", utils::osVersion),
    reticulate = version_of("reticulate"),
    keras3 = version_of("keras3"),
    backend = wanted_backend()
  )
  no_python <- start_python()
  if (!is.null(no_python)) {
    return(c(found, problem = no_python))
  }
  found <- c(found, find_python(), find_packages(found[["backend"]]))
  problem <- problem %||% try_module()
  if (is.null(problem)) {
    keras <- reticulate::import("keras")
    found$backend <- keras$backend$backend()
    found$backend_version <- backend_version(found[["backend"]])
    found$devices <- paste(find_devices(found[["backend"]]), collapse = ", ")
  }
  c(found, problem = problem)
}

# Keras knows the devices of TensorFlow and JAX alone.
find_devices <- function(backend) {
  if (backend %in% c("tensorflow", "jax")) {
    return(reticulate::import("keras")$distribution$list_devices())
  }
  if (backend != "torch") {
    return("cpu:0")
  }
  torch <- reticulate::import("torch")
  c(
    "cpu:0",
    sprintf("gpu:%d", seq_len(torch$cuda$device_count()) - 1L),
    if (torch$backends$mps$is_available()) "mps:0"
  )
}

version_of <- function(package) {
  tryCatch(
    as.character(utils::packageVersion(package)),
    error = function(cnd) NULL
  )
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

find_python <- function() {
  config <- reticulate::py_config()
  version <- as.character(config$version_string %||% config$version)
  list(
    python = config$python,
    python_version = sub(" .*$", "", version),
    chosen_by = if (is_managed()) "py_require()" else config$forced
  )
}

# Made by reticulate, of what packages and the user have asked for by py_require().
is_managed <- function() isTRUE(reticulate::py_config()$ephemeral)

find_packages <- function(backend) {
  known <- Filter(function(name) !is.null(backend_version(name)), backends)
  list(
    numpy = python_version_of("numpy"),
    keras = python_version_of("keras"),
    backend_version = backend_version(backend),
    installed_backends = known,
    managed = is_managed()
  )
}

try_module <- function() {
  tryCatch(
    {
      python_module()
      NULL
    },
    error = function(cnd) cnd$python_message %||% conditionMessage(cnd)
  )
}

# The version of an installed Python package, without importing it.
python_version_of <- function(package) {
  metadata <- reticulate::import("importlib.metadata")
  tryCatch(metadata$version(package), error = function(cnd) NULL)
}

# TensorFlow is published under several names.
backend_version <- function(backend) {
  for (name in paste0(backend, c("", "-cpu", "_cpu", "-intel", "-macos"))) {
    version <- python_version_of(name)
    if (!is.null(version)) {
      return(version)
    }
  }
  NULL
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

# Report -----------------------------------------------------------------------

format_sitrep <- function(found) {
  state <- if (is.null(found[["problem"]])) "ready" else "not ready"
  python <- if (!is.null(found[["python"]])) {
    paste0(found[["python_version"]], ", ", where_python(found))
  }
  line <- function(label, text) {
    paste0("  ", formatC(label, width = -12), text %||% "not found")
  }
  c(
    paste0("kerasattention ", found[["package"]], ": ", state),
    line("R", found[["r"]]),
    line("reticulate", found[["reticulate"]]),
    if (!is.null(found[["keras3"]])) line("keras3 (R)", found[["keras3"]]),
    line("Python", python),
    line("NumPy", found[["numpy"]]),
    line("Keras", found[["keras"]]),
    line(
      "backend",
      paste(found[["backend"]], found[["backend_version"]] %||% "not found")
    ),
    if (!is.null(found[["devices"]])) line("devices", found[["devices"]]),
    if (!is.null(found[["problem"]])) format_problem(found)
  )
}

format_problem <- function(found) {
  advice <- advise(found)
  c(
    "",
    advice$found,
    paste0("  ", strsplit(found[["problem"]], "\n")[[1]]),
    "",
    advice$todo
  )
}

where_python <- function(found) {
  paste0(
    found[["python"]],
    if (!is.null(found[["chosen_by"]])) {
      paste0(", chosen by ", sub(" function$", "", found[["chosen_by"]]))
    }
  )
}
