# Rules for the files in R/ and tests/testthat/, checked on the sources.

# An installed package does not have its sources: outside of the project these tests are skipped.
sources <- function(folder, pattern = "[.]R$") {
  home <- Sys.getenv("KERASATTENTION_HOME", test_path("..", ".."))
  skip_if_not(dir.exists(file.path(home, "R")), "the sources are not here")
  list.files(file.path(home, folder), pattern, full.names = TRUE)
}

# What a file assigns at the top level: names and unevaluated values.
assigned <- function(path) {
  expressions <- as.list(parse(path, keep.source = FALSE))
  is_assignment <- function(e) is.call(e) && identical(e[[1]], quote(`<-`))
  expressions <- Filter(is_assignment, expressions)
  values <- lapply(expressions, function(e) e[[3]])
  names(values) <- vapply(expressions, function(e) as.character(e[[2]]), "")
  values
}

is_function_code <- function(e) {
  is.call(e) && identical(e[[1]], quote(`function`))
}

# Global functions and variables that the code of a value uses, without running it.
globals_of <- function(value) {
  codetools::findGlobals(eval(call("function", NULL, value), baseenv()))
}

# For each file the other files that define something it uses.
files_used <- function(paths) {
  values <- lapply(paths, assigned)
  names(values) <- basename(paths)
  home <- rep(names(values), lengths(values))
  names(home) <- unlist(lapply(values, names))
  lapply(values, function(of_file) {
    used <- unlist(lapply(of_file, globals_of))
    unique(unname(home[intersect(used, names(home))]))
  }) |>
    Map(f = setdiff, names(values))
}

# A path of calls from `at` back to itself, or NULL.
cycle_from <- function(at, uses, path = character()) {
  if (at %in% path) {
    return(c(path[match(at, path):length(path)], at))
  }
  for (following in uses[[at]]) {
    found <- cycle_from(following, uses, c(path, at))
    if (!is.null(found)) {
      return(found)
    }
  }
  NULL
}

find_cycle <- function(uses) {
  for (file in names(uses)) {
    found <- cycle_from(file, uses)
    if (!is.null(found)) {
      return(paste(found, collapse = " -> "))
    }
  }
  NULL
}

test_that("a circle of calls between files is found", {
  folder <- withr::local_tempdir()
  write <- function(file, ...) writeLines(c(...), file.path(folder, file))
  write("a.R", "f <- function(x) lapply(x, g)")
  write("b.R", "g <- function(f) f + size", "size <- 3")
  files <- function() files_used(list.files(folder, full.names = TRUE))
  expect_equal(files()[["a.R"]], "b.R")
  expect_null(find_cycle(files()))
  write("c.R", "h <- function() function(x) f(x)")
  write("b.R", "g <- function(f) f + size", "size <- h()")
  expect_equal(find_cycle(files()), "a.R -> b.R -> c.R -> a.R")
})

test_that("files of R/ do not call each other in a circle", {
  expect_null(find_cycle(files_used(sources("R"))))
})

test_that("files of R/ have at most 300 lines, and a test file each", {
  paths <- sources("R")
  long <- Filter(function(path) length(readLines(path)) > 300, paths)
  expect_equal(basename(long), character())
  has_functions <- function(path) {
    any(vapply(assigned(path), is_function_code, NA))
  }
  tests <- basename(sources("tests/testthat", "^test-"))
  expected <- paste0("test-", basename(Filter(has_functions, paths)))
  expect_equal(setdiff(expected, tests), character())
})

test_that("test files hold tests and helper functions only", {
  is_allowed <- function(e) {
    is_test <- identical(e[[1]], quote(test_that))
    is_test || identical(e[[1]], quote(`<-`)) && is_function_code(e[[3]])
  }
  for (path in sources("tests/testthat", "^test-")) {
    code <- as.list(parse(path, keep.source = FALSE))
    other <- Filter(Negate(is_allowed), code)
    expect_equal(other, list(), info = basename(path))
  }
})
