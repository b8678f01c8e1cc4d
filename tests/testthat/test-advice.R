test_that("each thing that is missing has a line to type", {
  show <- function(found) {
    advice <- diagnose(found)
    writeLines(c(advice$found, advice$todo))
  }
  expect_snapshot({
    show(without("python", problem = "Installation of Python not found"))
    show(c(without("python"), uv = "0.13.9"))
    show(c(
      without("python", "reticulate"),
      uv = "0.13.9",
      reticulate = "1.44.1"
    ))
    show(without(
      "python",
      problem = "Python specified in RETICULATE_PYTHON (none) does not exist"
    ))
    show(without("keras"))
    show(without("keras", "backend_version"))
    show(utils::modifyList(found, list(keras = "3.9.2")))
    show(without("backend_version"))
    show(utils::modifyList(
      without("backend_version"),
      list(installed_backends = NULL)
    ))
    show(utils::modifyList(found, list(backend = "theano")))
    show(utils::modifyList(without("keras"), list(managed = TRUE)))
    show(utils::modifyList(without("keras"), list(pip = FALSE)))
    show(utils::modifyList(
      without("keras"),
      list(python = "C:/Program Files/python.exe")
    ))
    show(found)
  })
})

# Meets the error with this Python; gives the lines of its message.
lines_with <- function(python, backend) {
  output <- run_r(
    c(session_code, "writeLines(paste0('  ', lines_of(meet())))"),
    env = c(nothing_set(python), paste0("KERAS_BACKEND=", backend))
  )
  trimws(grep("^  ", output, value = TRUE))
}

# Types in a terminal, where pip finds these packages.
in_terminal <- function(lines, packages, frame = parent.frame()) {
  withr::local_envvar(c(index_of(packages, frame), PYTHONPATH = ""))
  for (line in lines) {
    said <- suppressWarnings(system(paste(line, "2>&1"), intern = TRUE))
    expect_null(
      attr(said, "status"),
      info = paste(c(line, said), collapse = "\n")
    )
  }
}

install_old_keras <- function(folder) {
  info <- file.path(folder, "keras-3.9.2.dist-info")
  dir.create(file.path(folder, "keras"))
  dir.create(info)
  writeLines("__version__ = '3.9.2'", file.path(folder, "keras", "__init__.py"))
  writeLines(
    c("Metadata-Version: 2.1", "Name: keras", "Version: 3.9.2"),
    file.path(info, "METADATA")
  )
  files <- c("keras/__init__.py", "keras-3.9.2.dist-info/METADATA")
  writeLines(
    paste0(c(files, "keras-3.9.2.dist-info/RECORD"), ",,"),
    file.path(info, "RECORD")
  )
}

expect_runs <- function(python, backend, first = character()) {
  output <- run_r(
    c(first, session_code, "backend()"),
    env = c(nothing_set(python), paste0("KERAS_BACKEND=", backend))
  )
  expect_match(output, paste("runs on", backend), all = FALSE)
}

test_that("the lines for a terminal install Keras and the backend; R is then restarted", {
  skip_on_cran()
  skip_without_keras()
  backend <- spare_backend()

  # Nothing is there, not even pip.
  python <- environment_with(NULL)
  lines <- lines_with(python, backend)
  expect_length(lines, 3)
  in_terminal(lines[1:2], c("keras", "numpy", backend))
  expect_runs(python, backend)
  # The other way out, with the Python that now has Keras.
  expect_match(lines[[3]], "path/to/python", fixed = TRUE)
  line <- sub("path/to/python", python, lines[[3]], fixed = TRUE)
  expect_runs(environment_with(NULL), backend, first = line)
})

test_that("the lines for a terminal install a missing backend, and update an old Keras", {
  skip_on_cran()
  skip_without_keras()
  backend <- spare_backend()

  python <- environment_with("keras")
  lines <- lines_with(python, backend)
  expect_match(lines, paste("-m pip install", backend))
  in_terminal(lines, backend)
  expect_runs(python, backend)

  python <- environment_with(backend)
  install_old_keras(site_packages(python))
  lines <- lines_with(python, backend)
  expect_match(lines[[1]], "-m pip install --upgrade keras")
  in_terminal(lines[[1]], "keras")
  expect_runs(python, backend)
})
