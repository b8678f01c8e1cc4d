test_that("an environment without TensorFlow runs on the backend it has, with one line", {
  skip_on_cran()
  skip_without_keras()
  backend <- spare_backend()
  output <- run_r(
    c(
      session_code,
      # The user loads Keras first; the note comes once.
      "keras <- reticulate::import('keras')",
      "backend()",
      "print(Sys.getenv('KERAS_BACKEND'))",
      "reticulate::import('keras')"
    ),
    env = nothing_set(environment_with(c("keras", backend)))
  )
  expect_match(output, paste("runs on", backend), all = FALSE)
  note <- paste0(
    "Keras runs on ",
    backend,
    ": TensorFlow is not installed. See `?use_backend`."
  )
  expect_length(grep(note, output, fixed = TRUE), 1)
})

test_that("what looks for backends may fail: Keras is used as it is", {
  skip_without_keras()
  expect_warning(
    before_keras(tempfile()),
    "could not be loaded when Python was started",
    class = "kerasattention_warning"
  )
})

test_that("nothing is written when Keras is loaded, a model fitted and saved", {
  skip_on_cran()
  skip_without_keras()
  backend <- keras()$config$backend()
  output <- run_r(
    c(
      "suppressMessages(library(kerasattention))",
      "keras <- reticulate::import('keras')",
      "input <- keras$Input(reticulate::tuple(3L, 5L))",
      "model <- keras$Model(input, input |> layer_multi_head_attention(2, 3))",
      "model$compile('sgd', 'mse')",
      "x <- array(1, c(4, 3, 5))",
      "history <- model$fit(x, x, verbose = 0L)",
      "model$save(tempfile(fileext = '.keras'))",
      "cat('end')"
    ),
    env = c(paste0("KERAS_BACKEND=", backend), "TF_CPP_MIN_LOG_LEVEL="),
    stderr = TRUE
  )
  expect_equal(output, "end")
})
