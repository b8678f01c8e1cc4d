# Which lines of R/ the tests reach: Rscript tools/coverage.R FOLDER
# Ends with status 1 below 95%.

folder <- commandArgs(trailingOnly = TRUE)[[1]]
Sys.setenv(
  NOT_CRAN = "true",
  KERAS_BACKEND = Sys.getenv("KERAS_BACKEND", "torch")
)

# A failure is the tests' own matter: loading takes longer where every line is counted.
run_tests <- sprintf(
  "testthat::test_dir('%s', package = '%s', load_package = 'installed', stop_on_failure = FALSE)",
  file.path(getwd(), "tests", "testthat"),
  "kerasattention"
)
coverage <- covr::package_coverage(
  type = "none",
  code = run_tests,
  quiet = TRUE
)
print(coverage)
counts <- as.data.frame(coverage)
missing <- counts[
  counts$value == 0,
  c("filename", "functions", "first_line", "last_line")
]
print(missing, row.names = FALSE)
utils::write.csv(missing, file.path(folder, "r.csv"), row.names = FALSE)
quit(status = as.integer(covr::percent_coverage(coverage) < 95))
