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
