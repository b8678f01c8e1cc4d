# Run the tests of the installed R package: Rscript tools/test-r.R REPORT [PART]
# REPORT is a JUnit file with one case per test_that() block. PART is "sessions" for the files whose
# tests start R again, which wait more than they compute, or "rest" for the others.

arguments <- commandArgs(trailingOnly = TRUE)
report <- normalizePath(arguments[[1]], mustWork = FALSE)
part <- if (length(arguments) > 1) arguments[[2]] else "all"

files <- list.files("tests/testthat", "^test-.*[.]R$", full.names = TRUE)
starts_r <- vapply(
  files,
  function(file) any(grepl("run_r(", readLines(file), fixed = TRUE)),
  logical(1)
)
files <- switch(
  part,
  all = files,
  sessions = files[starts_r],
  rest = files[!starts_r],
  stop("PART must be \"sessions\" or \"rest\". Received: ", part)
)
names <- sub("^test-(.*)[.]R$", "\\1", basename(files))
filter <- paste0("^(", paste(names, collapse = "|"), ")$")

# Whatever CRAN's machines skip runs here.
Sys.setenv(NOT_CRAN = "true")

results <- testthat::test_dir(
  "tests/testthat",
  package = "kerasattention",
  load_package = "installed",
  filter = filter,
  reporter = testthat::SummaryReporter$new(show_praise = FALSE),
  stop_on_failure = FALSE
)

escape <- function(text) {
  text <- gsub("&", "&amp;", text, fixed = TRUE)
  text <- gsub("<", "&lt;", text, fixed = TRUE)
  gsub("\"", "&quot;", text, fixed = TRUE)
}

table <- as.data.frame(results)
failed <- table$failed > 0 | table$error
# A block that tested something before it skipped the rest has not been skipped.
skipped <- table$skipped & table$passed == 0 & !failed
inner <- ifelse(failed, "<failure/>", ifelse(skipped, "<skipped/>", ""))
cases <- sprintf(
  "<testcase classname=\"%s\" name=\"%s\" time=\"%.3f\">%s</testcase>",
  escape(table$file),
  escape(table$test),
  table$real,
  inner
)
writeLines(c("<testsuite>", cases, "</testsuite>"), report)
quit(status = if (any(failed)) 1 else 0)
