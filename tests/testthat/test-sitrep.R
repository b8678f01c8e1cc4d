test_that("the report says what is there", {
  expect_snapshot({
    writeLines(format_sitrep(c(found, devices = "cpu:0")))
    writeLines(format_sitrep(without(
      "keras3",
      "python",
      "python_version",
      "chosen_by",
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
  expect_match(report, result$python_version, fixed = TRUE, all = FALSE)
  expect_match(report, "cpu:0|gpu:0", all = FALSE)
})

test_that("the report is made on every backend", {
  skip_on_cran() # torch leaves a folder where temporary files lie
  skip_without_keras()
  backends <- c("tensorflow", "jax", "torch")
  for (backend in Filter(reticulate::py_module_available, backends)) {
    report <- run_r(
      "library(kerasattention); attention_sitrep()",
      env = paste0("KERAS_BACKEND=", backend)
    )
    expect_match(report[[1]], "ready$")
    expect_match(report, paste("backend +", backend), all = FALSE)
    expect_match(report, "devices +.*(cpu|gpu):0", all = FALSE)
  }
})

test_that("articles say where code for keras3 was not run", {
  expect_snapshot(write_keras3_note(FALSE))
  expect_silent(write_keras3_note(TRUE))
  expect_false(has_keras3(NULL, "1.46.0"))
  expect_false(has_keras3("1.5.1", "1.41.0.1"))
  expect_true(has_keras3("1.5.1", "1.42.0"))
})
