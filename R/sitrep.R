#' Show the Python, Keras and backend in use
#'
#' Starts Python if it is not running, and prints the versions of R, Python, Keras and the
#' backend. If something is missing, it prints the line to type. Paste the output into bug
#' reports.
#'
#' @returns Invisibly, a list of strings, `NULL` where nothing was found: `package`, `r`,
#'   `reticulate`, `keras3` (the R package), `python` (its path), `python_version`,
#'   `chosen_by` (the setting that chose this Python), `numpy`, `keras`, `backend`,
#'   `backend_version`, `devices`, and `problem` (`NULL` if the layers can be used).
#' @seealso [layer_group_query_attention()]
#' @export
#' @examplesIf kerasattention:::can_run_examples()
#' attention_sitrep()
attention_sitrep <- function() {
  found <- find_session()
  writeLines(format_sitrep(found))
  invisible(found)
}

# The installation, and what is known once Keras is loaded: whether it works, its backend and
# devices.
find_session <- function() {
  found <- find_installation()
  found$problem <- found[["problem"]] %||% try_module()
  if (is.null(found[["problem"]])) {
    keras <- reticulate::import("keras")
    found$backend <- keras$backend$backend()
    found$backend_version <- backend_version(found[["backend"]])
    found$devices <- paste(find_devices(found[["backend"]]), collapse = ", ")
  }
  found
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

# Keras lists the devices of TensorFlow and JAX only.
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

# Whether examples and the vignette can run. Never installs anything: FALSE where no Python
# with Keras has been named or is running.
can_run_examples <- function() {
  named <- c("RETICULATE_PYTHON", "RETICULATE_PYTHON_ENV", "VIRTUAL_ENV")
  if (!reticulate::py_available() && !any(nzchar(Sys.getenv(named)))) {
    return(FALSE)
  }
  is.null(start_python()) && is.null(try_module())
}

# Whether README, the vignette and the articles run their code for keras3. Does not load it.
has_keras3 <- function(
  keras3 = version_of("keras3"),
  reticulate = version_of("reticulate")
) {
  !is.null(keras3) && utils::compareVersion(reticulate, keras3_reticulate) >= 0
}

# The oldest version of reticulate with which keras3 can be attached.
keras3_reticulate <- "1.42"

# The note beside such code where it is not run, for a chunk with `results = "asis"`.
write_keras3_note <- function(ready = has_keras3()) {
  if (!ready) {
    writeLines(paste(
      "*The R package keras3, which needs reticulate 1.42 or newer, was not installed where this",
      "page was made: its code is shown, but was not run.*"
    ))
  }
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
  advice <- diagnose(found)
  c(
    "",
    advice$found,
    paste0("  ", strsplit(found[["problem"]], "\n")[[1]]),
    "",
    advice$todo
  )
}
