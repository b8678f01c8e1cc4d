# Build the pkgdown site into docs/, without the network, and check what was built.
#   Rscript tools/site.R                  all of it
#   Rscript tools/site.R masks heads      these articles again, in a site that is there
#   Rscript tools/site.R --check          the checks alone

source("tools/site-pages.R")

# pkgdown asks CRAN and GitHub about the package; both questions can wait for a reply
# that never comes.
options(pkgdown.internet = FALSE, warn = 1, width = 80)
# The code of a page is linked to the sites of packages, which CRAN is asked for where one
# is not installed: keras3 may be missing.
no_packages <- function() data.frame(Package = character(), URL = character())
utils::assignInNamespace("CRAN_urls", no_packages, "downlit")
# Examples and the vignette run on this backend; articles name theirs.
if (!nzchar(Sys.getenv("KERAS_BACKEND"))) {
  Sys.setenv(KERAS_BACKEND = "jax")
}

timed <- function(label, code) {
  seconds <- system.time(code)[["elapsed"]]
  cat(sprintf("site: %-34s %5.1f s\n", label, seconds))
}

# Two at a time, each in a separate R process.
build_articles <- function(names) {
  build <- function(name) {
    warnings <- character()
    withCallingHandlers(
      timed(name, pkgdown::build_article(name, ".", quiet = TRUE)),
      warning = function(cnd) {
        warnings <<- c(warnings, paste0(name, ": ", conditionMessage(cnd)))
      }
    )
    warnings
  }
  cores <- if (.Platform$OS.type == "unix") 2 else 1
  found <- parallel::mclapply(
    names,
    build,
    mc.cores = cores,
    mc.preschedule = FALSE
  )
  failed <- vapply(found, inherits, NA, "try-error")
  if (any(failed)) {
    stop(paste0(names[failed], ": ", unlist(found[failed]), collapse = "\n"))
  }
  for (message in unlist(found)) {
    warning(message, call. = FALSE)
  }
}

# pkgdown renders the installed package: `make setup` has just installed it.
build_all <- function(articles) {
  unlink("docs", recursive = TRUE)
  pkgdown::init_site(".")
  timed("home", pkgdown::build_home(".", preview = FALSE))
  # pkgdown makes a page of every Markdown file in .github.
  unlink("docs/pull_request_template.html")
  # Before the examples load Python in this process, which is forked for articles.
  build_articles(articles)
  timed(
    "reference",
    pkgdown::build_reference(".", preview = FALSE, devel = FALSE)
  )
  timed("news", pkgdown::build_news(".", preview = FALSE))
}

build_indexes <- function() {
  pkgdown::build_articles_index(".")
  add_pictures("docs/articles")
  pkgdown::build_search(".")
}

run <- function(arguments) {
  articles <- pkgdown::as_pkgdown(".")$vignettes$name
  if (!identical(arguments, "--check")) {
    if (length(arguments) == 0) {
      build_all(articles)
    } else {
      build_articles(articles[basename(articles) %in% arguments])
    }
    build_indexes()
    repair_pages("docs")
  }
  check_pages("docs")
}

problems <- character()
withCallingHandlers(
  timed("all", found <- run(commandArgs(TRUE))),
  warning = function(cnd) {
    problems <<- c(problems, paste("warning:", conditionMessage(cnd)))
  }
)
problems <- c(problems, found)
if (length(problems) > 0) {
  writeLines(c("", "site: something is wrong", paste0("  ", problems)))
  quit(status = 1)
}
cat("site: docs/index.html\n")
