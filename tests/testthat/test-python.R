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
