found <- list(
  package = "1.0.0",
  r = "4.5.0, Debian GNU/Linux 13",
  reticulate = "1.41.0",
  keras3 = "1.5.0",
  backend = "jax",
  python = "bin/python",
  python_version = "3.11.7",
  chosen_by = "RETICULATE_PYTHON",
  numpy = "2.4.6",
  keras = "3.15.1",
  backend_version = "0.10.2",
  installed_backends = "torch",
  managed = FALSE
)

without <- function(..., problem = NULL) {
  c(found[setdiff(names(found), c(...))], problem = problem)
}

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

test_that("each thing that is missing has a line to type", {
  show <- function(found) {
    advice <- advise(found)
    writeLines(c(advice$found, advice$todo))
  }
  expect_snapshot({
    show(without("python"))
    show(without("keras"))
    show(without("keras", "backend_version"))
    show(utils::modifyList(found, list(keras = "3.9.2")))
    show(without("backend_version"))
    show(utils::modifyList(
      without("backend_version"),
      list(installed_backends = NULL)
    ))
    show(utils::modifyList(found, list(backend = "theano")))
    show(utils::modifyList(without("keras"), list(managed = TRUE)))
    show(utils::modifyList(
      without("keras"),
      list(python = "C:/Program Files/python.exe")
    ))
    show(found)
  })
})

test_that("versions are compared as versions", {
  expect_true(is_too_old("2.15.0"))
  expect_true(is_too_old("3.9.2"))
  expect_false(is_too_old("3.15.0"))
  expect_false(is_too_old("3.15.1"))
  expect_false(is_too_old("3.16.0.dev0"))
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

# A Python environment with nothing in it, or with a file named keras.py.
empty_environment <- function(keras = NULL, frame = parent.frame()) {
  folder <- withr::local_tempdir(.local_envir = frame)
  python <- reticulate::py_config()$python
  system2(python, c("-m", "venv", "--without-pip", shQuote(folder)))
  windows <- .Platform$OS.type == "windows"
  packages <- list.files(
    folder,
    "^site-packages$",
    recursive = TRUE,
    include.dirs = TRUE
  )
  if (!is.null(keras)) {
    writeLines(keras, file.path(folder, packages[[1]], "keras.py"))
  }
  file.path(folder, if (windows) "Scripts/python.exe" else "bin/python")
}

message_with <- function(python, ...) {
  output <- run_r(
    c(
      "suppressMessages(library(kerasattention))",
      "cnd <- tryCatch(layer_multi_head_attention(num_heads = 2, key_dim = 3), error = identity)",
      "print(class(cnd)[[1]])",
      "writeLines(conditionMessage(cnd))",
      "report <- attention_sitrep()"
    ),
    env = c(paste0("RETICULATE_PYTHON=", shQuote(python)), "PYTHONPATH=", ...)
  )
  paste(output, collapse = "\n")
}

test_that("a Python without Keras is one clear error, and so is one that is not there", {
  skip_on_cran()
  skip_without_keras()
  python <- empty_environment()
  text <- message_with(python, "KERAS_BACKEND=torch")
  expect_match(
    text,
    "[1] \"kerasattention_error\"\nKeras was not found in",
    fixed = TRUE
  )
  expect_match(text, "No module named 'keras'", fixed = TRUE)
  expect_match(text, "chosen by RETICULATE_PYTHON", fixed = TRUE)
  expect_match(text, paste(python, "-m pip install keras torch"), fixed = TRUE)
  expect_match(text, "not ready", fixed = TRUE)

  text <- message_with(file.path(dirname(python), "none"))
  expect_match(
    text,
    "[1] \"kerasattention_error\"\nPython was not found",
    fixed = TRUE
  )
  expect_match(text, "Sys.setenv(RETICULATE_PYTHON", fixed = TRUE)
})

test_that("a Keras that cannot be loaded is one clear error and no loop", {
  skip_on_cran()
  skip_without_keras()
  text <- message_with(empty_environment("__version__ = '2.15.0'"))
  expect_match(text, "[1] \"kerasattention_error\"", fixed = TRUE)
  expect_match(text, "cannot import name 'ops' from 'keras'", fixed = TRUE)
  expect_match(text, "not ready", fixed = TRUE)
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
