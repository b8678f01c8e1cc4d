# Build the pkgdown site into docs/ without the network.

# pkgdown asks CRAN and GitHub about the package; both questions can wait for a reply
# that never comes.
options(pkgdown.internet = FALSE)

# pkgdown renders the installed package: `make setup` has just installed it.
pkgdown::build_site(
  ".",
  preview = FALSE,
  install = FALSE,
  new_process = FALSE,
  devel = FALSE
)
cat("site: docs/index.html\n")
