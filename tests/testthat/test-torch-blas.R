test_that("torch is loaded with its own functions first, and only where Keras runs on it", {
  # In a new process, where Python has not been started and nothing of torch is loaded.
  skip_if_not(Sys.info()[["sysname"]] == "Linux", "the linker is Linux's")
  code <- paste(
    "suppressMessages(library(kerasattention))",
    "os <- reticulate::import('os')",
    "maps <- readLines('/proc/self/maps')",
    "cat(any(grepl('libtorch_cpu', maps)))",
    sep = "; "
  )
  loaded <- function(backend) {
    withr::local_envvar(KERAS_BACKEND = backend)
    system2(
      file.path(R.home("bin"), "Rscript"),
      c("-e", shQuote(code)),
      stdout = TRUE,
      stderr = FALSE
    )
  }
  expect_identical(loaded("torch"), "TRUE")
  expect_identical(loaded("jax"), "FALSE")
})
