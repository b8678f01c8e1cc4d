found <- list(
  package = "1.0.0",
  reticulate = "1.41.0",
  backend = "jax",
  python = "bin/python",
  python_version = "3.11.7",
  numpy = "2.4.6",
  keras = "3.15.1",
  backend_version = "0.10.2"
)

test_that("the report says what is there, and what to do where something is missing", {
  without <- function(..., problem) {
    c(found[setdiff(names(found), c(...))], problem = problem)
  }
  expect_snapshot({
    writeLines(format_sitrep(found))
    writeLines(format_sitrep(without(
      "python",
      "python_version",
      "numpy",
      "keras",
      "backend_version",
      problem = "Installation of Python not found, Python bindings not loaded."
    )))
    writeLines(format_sitrep(without(
      "keras",
      problem = "No module named 'keras'"
    )))
    writeLines(format_sitrep(without(
      "backend_version",
      problem = "No module named 'jax'"
    )))
    writeLines(format_sitrep(without(
      problem = "cannot import name 'Layer'\nfrom keras"
    )))
  })
})

test_that("the report of this session names its Python, Keras and backend", {
  skip_without_keras()
  report <- capture.output(result <- attention_sitrep())
  expect_match(report[[1]], "ready$")
  expect_null(result$problem)
  expect_equal(result$backend, keras()$backend$backend())
  expect_equal(result$keras, keras()$`__version__`)
  expect_equal(result$python, reticulate::py_config()$python)
  expect_match(report[[3]], result$python_version, fixed = TRUE)
})
