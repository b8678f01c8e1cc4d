# Install from CRAN those of the named packages that no library has:
#   Rscript tools/r-packages.R LIBRARY PACKAGE...

arguments <- commandArgs(trailingOnly = TRUE)
library <- arguments[[1]]
wanted <- arguments[-1]

missing <- wanted[!vapply(wanted, requireNamespace, logical(1), quietly = TRUE)]
if (length(missing) > 0) {
  repos <- getOption("repos")
  if (is.na(repos["CRAN"]) || identical(repos[["CRAN"]], "@CRAN@")) {
    utils::chooseCRANmirror(ind = 1, graphics = FALSE)
  }
  utils::install.packages(
    missing,
    lib = library,
    Ncpus = parallel::detectCores()
  )
}

still_missing <- missing[
  !vapply(missing, requireNamespace, logical(1), quietly = TRUE)
]
if (length(still_missing) > 0) {
  stop("not installed: ", paste(still_missing, collapse = ", "), call. = FALSE)
}
