test_that("the argument is checked, and a loaded Keras keeps its backend", {
  skip_without_keras()
  keras()
  loaded <- keras()$config$backend()
  expect_identical(use_backend(loaded), loaded)
  expect_snapshot(error = TRUE, {
    use_backend()
    use_backend("theano")
    use_backend(c("jax", "torch"))
  })
  other <- setdiff(backends, loaded)[[1]]
  expect_error(
    use_backend(other),
    paste0(
      "runs on ",
      loaded,
      " in this session, and cannot change to ",
      other
    ),
    class = "kerasattention_error"
  )
})

test_that("before Python starts, it sets the variable and changes the requirements", {
  output <- run_r(
    c(
      "suppressMessages(library(kerasattention))",
      "use_backend('jax')",
      "writeLines(reticulate::py_require()$packages)",
      "print(Sys.getenv('KERAS_BACKEND'))",
      "print(reticulate::py_available())"
    ),
    env = "KERAS_BACKEND=tensorflow"
  )
  expect_true("jax" %in% output)
  expect_false("tensorflow" %in% output)
  expect_equal(utils::tail(output, 2), c("[1] \"jax\"", "[1] FALSE"))
})

test_that("the way out of a backend that is missing or unknown works in the same session", {
  skip_on_cran()
  skip_without_keras()
  backend <- spare_backend()
  python <- environment_with(c("keras", backend))
  line <- paste0("kerasattention::use_backend\\(\"", backend, "\"\\)")
  for (named in c("tensorflow", "theano")) {
    output <- run_r(
      c(
        session_code,
        "lines <- lines_of(meet())",
        "writeLines(lines)",
        "type(utils::tail(lines, 1))",
        "backend()"
      ),
      env = c(nothing_set(python), paste0("KERAS_BACKEND=", named))
    )
    expect_match(output, line, all = FALSE)
    expect_match(output, paste("runs on", backend), all = FALSE)
  }
})

test_that("so does Sys.setenv(), whoever loads Keras then", {
  skip_on_cran()
  skip_without_keras()
  backend <- spare_backend()
  python <- environment_with(c("keras", backend))
  output <- run_r(
    c(
      session_code,
      "meet()",
      paste0("Sys.setenv(KERAS_BACKEND = \"", backend, "\")"),
      "keras <- reticulate::import('keras')",
      "backend()"
    ),
    env = c(nothing_set(python), "KERAS_BACKEND=tensorflow")
  )
  expect_match(output, paste("runs on", backend), all = FALSE)
})

test_that("the way out of another backend works in a new session", {
  skip_on_cran()
  skip_without_keras()
  loaded <- keras()$config$backend()
  others <- Filter(function(name) !is.null(backend_version(name)), backends)
  other <- setdiff(others, loaded)
  skip_if(length(other) == 0, "there is one backend")
  cnd <- tryCatch(use_backend(other[[1]]), error = identity)
  line <- regmatches(
    conditionMessage(cnd),
    regexpr("kerasattention::use_backend\\([^)]*\\)", conditionMessage(cnd))
  )
  output <- run_r(
    c(session_code, line, "backend()"),
    env = paste0("KERAS_BACKEND=", loaded)
  )
  expect_match(output, paste("runs on", other[[1]]), all = FALSE)
})
