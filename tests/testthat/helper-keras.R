# Keras must be there in the project's environment; elsewhere (R CMD check on a
# machine without Python) what needs it is skipped.
skip_without_keras <- function() {
  if (can_run_examples()) {
    return(invisible())
  }
  if (identical(Sys.getenv("KERASATTENTION_ENV"), "1")) {
    stop("Keras cannot be loaded: ", find_session()$problem)
  }
  skip("Keras is not available")
}

keras <- function() reticulate::import("keras")

# Numbers of a given shape, the same every time.
numbers <- function(..., seed = 1) {
  withr::with_seed(seed, array(stats::rnorm(prod(...)), c(...)))
}

input <- function(..., dtype = NULL) {
  keras()$Input(shape = list(...), dtype = dtype)
}

expect_close <- function(actual, expected, tolerance = 1e-5) {
  expect_equal(dim(as.array(actual)), dim(as.array(expected)))
  expect_lt(max(abs(as.array(actual) - as.array(expected))), tolerance)
}

# Runs R code in a new process with the same library; gives what it prints, with `stderr = TRUE`
# also on standard error.
run_r <- function(code, env = character(), stderr = FALSE) {
  if (nzchar(Sys.getenv("QUICK"))) {
    skip("make test-quick starts no other session")
  }
  file <- withr::local_tempfile(fileext = ".R")
  writeLines(code, file)
  libraries <- paste(.libPaths(), collapse = .Platform$path.sep)
  python <- paste0("RETICULATE_PYTHON=", Sys.getenv("RETICULATE_PYTHON"))
  system2(
    file.path(R.home("bin"), "Rscript"),
    c("--vanilla", shQuote(file)),
    stdout = TRUE,
    stderr = stderr,
    env = c(paste0("R_LIBS=", shQuote(libraries)), python, env)
  )
}

# Runs R code in a new session, in which `model` has been read from a file. Prints first whether
# the model predicts of `x` what it predicted here.
run_r_on_saved_model <- function(model, x, code) {
  file <- withr::local_tempfile(fileext = ".keras")
  data <- withr::local_tempfile(fileext = ".rds")
  model$save(file)
  saveRDS(list(x = x, y = model$predict(x, verbose = 0L)), data)
  run_r(c(
    "suppressMessages(library(kerasattention))",
    sprintf("data <- readRDS(%s)", deparse(data)),
    sprintf(
      "model <- reticulate::import('keras')$saving$load_model(%s)",
      deparse(file)
    ),
    "print(max(abs(model$predict(data$x, verbose = 0L) - data$y)) < 1e-6)",
    code
  ))
}
