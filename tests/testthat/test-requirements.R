test_that("reticulate is asked for Keras and one backend, and keras3 is left to choose", {
  ours <- c("keras>=3.15", "numpy>=1.26")
  expect_equal(python_requirements("tensorflow", "base"), c(ours, "tensorflow"))
  expect_equal(python_requirements("jax", "base"), c(ours, "jax"))
  expect_equal(python_requirements("torch", c("base", "keras3")), ours)
  expect_equal(python_requirements("unknown", "base"), ours)
})

test_that("a backend chosen after the package was loaded takes the place of the first", {
  output <- run_r(
    c(
      "suppressMessages(library(kerasattention))",
      "writeLines(reticulate::py_require()$packages)",
      "writeLines('then')",
      "Sys.setenv(KERAS_BACKEND = 'jax')",
      "kerasattention:::update_requirements()",
      "writeLines(reticulate::py_require()$packages)",
      "print(reticulate::py_available())"
    ),
    env = c(
      "KERAS_BACKEND=",
      paste0("KERAS_HOME=", shQuote(withr::local_tempdir()))
    )
  )
  then <- which(output == "then")
  expect_true(all(
    c("keras>=3.15", "numpy>=1.26", "tensorflow") %in% output[1:then]
  ))
  after <- output[then:length(output)]
  expect_true(all(c("keras>=3.15", "numpy>=1.26", "jax") %in% after))
  expect_false("tensorflow" %in% after)
  expect_equal(utils::tail(output, 1), "[1] FALSE")
})

test_that("with nothing set, uv gives the environment, and the line for one without Keras works", {
  skip_on_cran()
  skip_without_keras()
  backend <- spare_backend()
  run_with_uv <- function(uv, ...) {
    run_r(
      c("Sys.unsetenv('RETICULATE_PYTHON')", session_code, ...),
      env = c(
        nothing_set(""),
        paste0("KERAS_BACKEND=", backend),
        paste0("RETICULATE_UV=", shQuote(uv)),
        paste0("RETICULATE_VIRTUALENV_ROOT=", shQuote(withr::local_tempdir()))
      )
    )
  }
  uv <- stub_uv(environment_with(NULL))
  output <- run_with_uv(uv, "writeLines(paste0('  ', lines_of(meet())))")
  line <- trimws(grep("^  ", output, value = TRUE))[[1]]
  packages <- paste0("c(\"keras\", \"", backend, "\")")
  expect_equal(line, paste0("reticulate::py_require(", packages, ")"))

  uv <- stub_uv(environment_with(c("keras", backend)))
  output <- run_with_uv(uv, line, "backend()")
  expect_match(output, paste("runs on", backend), all = FALSE)
  asked <- readLines(file.path(dirname(uv), "asked"))
  for (package in c("keras>=3.15", "keras", "numpy>=1.26", backend)) {
    expect_match(asked, paste("--with", package), fixed = TRUE)
  }
})
