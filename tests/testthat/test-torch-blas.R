skip_elsewhere <- function() {
  skip_if_not(Sys.info()[["sysname"]] == "Linux", "the linker is Linux's")
}

# In a new process, where Python has not been started and nothing of torch is loaded.
run_afresh <- function(backend, code, env = character()) {
  withr::local_envvar(KERAS_BACKEND = backend, env)
  code <- paste(
    c("suppressMessages(library(kerasattention))", code),
    collapse = "; "
  )
  rscript <- file.path(R.home("bin"), "Rscript")
  system2(rscript, c("-e", shQuote(code)), stdout = TRUE, stderr = FALSE)
}

test_that("torch in R multiplies by its own BLAS, not by R's", {
  skip_elsewhere()
  folder <- withr::local_tempdir()
  # The linker itself says where it found each function.
  linker <- c(
    LD_DEBUG = "bindings",
    LD_DEBUG_OUTPUT = file.path(folder, "linker")
  )
  code <- c(
    "x <- reticulate::import('torch')$ones(300L, 300L)",
    "cat(x$matmul(x)$sum()$item())"
  )
  expect_identical(run_afresh("torch", code, linker), "2.7e+07")
  said <- unlist(lapply(list.files(folder, full.names = TRUE), readLines))
  found <- grep(
    "binding file \\S*libtorch_cpu.so .*`sgemm_'",
    said,
    value = TRUE
  )
  expect_length(found, 1)
  expect_match(found, "to \\S*libtorch_cpu.so")
})

test_that("torch is not loaded where Keras runs on another backend", {
  skip_elsewhere()
  code <- c(
    "os <- reticulate::import('os')",
    "cat(any(grepl('libtorch_cpu', readLines('/proc/self/maps'))))"
  )
  expect_identical(run_afresh("torch", code), "TRUE")
  expect_identical(run_afresh("jax", code), "FALSE")
})

test_that("torch that cannot be loaded first is loaded as ever, with a warning", {
  skip_elsewhere()
  expect_warning(
    on_python_start("torch", "raise OSError('no such library')"),
    "may be slow",
    class = "kerasattention_warning"
  )
})
