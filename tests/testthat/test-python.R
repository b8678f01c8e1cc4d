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
  python <- environment_with(NULL)
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
  python <- environment_with(NULL)
  broken <- file.path(site_packages(python), "keras.py")
  writeLines("__version__ = '2.15.0'", broken)
  text <- message_with(python)
  expect_match(text, "[1] \"kerasattention_error\"", fixed = TRUE)
  expect_match(text, "cannot import name 'ops' from 'keras'", fixed = TRUE)
  expect_match(text, "not ready", fixed = TRUE)
})
