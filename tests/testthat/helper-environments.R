# Python environments as users have them, made without the network: a virtual environment, and
# links to packages of the Python that runs the tests.

# The backends other than TensorFlow that this Python has. Tests with environments use the first.
spare_backend <- function() {
  spare <- Filter(function(name) !is.null(backend_version(name)), backends[-1])
  if (length(spare) == 0) {
    skip("neither JAX nor PyTorch is installed")
  }
  spare[[1]]
}

# The Python of an environment that has these backends of the tests' Python, Keras and whatever is
# not a backend; with `packages = NULL` it has nothing.
environment_with <- function(packages, frame = parent.frame()) {
  skip_on_os("windows") # links need rights there
  folder <- withr::local_tempdir(.local_envir = frame)
  python <- file.path(folder, "bin", "python")
  venv <- c("-m", "venv", "--without-pip", shQuote(folder))
  system2(reticulate::py_config()$python, venv)
  if (!is.null(packages)) {
    links <- link_packages(packages, frame)
    writeLines(links, file.path(site_packages(python), "links.pth"))
  }
  python
}

site_packages <- function(python = reticulate::py_config()$python) {
  code <- "import sysconfig; print(sysconfig.get_paths()['purelib'])"
  system2(python, c("-c", shQuote(code)), stdout = TRUE)
}

# A folder of links to all packages but the backends and Keras, as far as these are not named.
link_packages <- function(packages, frame = parent.frame(), others = TRUE) {
  patterns <- c(
    keras = "^keras(-|_|$)",
    tensorflow = "^(tensorflow|tensorboard|tf_|libtensorflow)",
    jax = "^jax",
    torch = "^(torch|functorch)"
  )
  files <- list.files(site_packages())
  files <- files[!grepl("[.]pth$|^__|^kerasattention", files)]
  is_of <- function(names) {
    grepl(paste(patterns[names], collapse = "|"), files)
  }
  kept <- if (others) {
    !is_of(setdiff(names(patterns), packages))
  } else {
    is_of(packages)
  }
  folder <- withr::local_tempdir(.local_envir = frame)
  file.symlink(
    file.path(site_packages(), files[kept]),
    file.path(folder, files[kept])
  )
  folder
}

# An index of packages for pip: wheels that hold a link to the package of this Python.
index_of <- function(packages, frame = parent.frame()) {
  folder <- withr::local_tempdir(.local_envir = frame)
  for (package in packages) {
    links <- link_packages(package, frame, others = package == "numpy")
    make_wheel(folder, package, python_version_of(package), links)
  }
  c(
    # The links are for this version of Python.
    RETICULATE_VIRTUALENV_STARTER = reticulate::import(
      "sys"
    )$`_base_executable`,
    PIP_CONFIG_FILE = "/dev/null",
    PIP_CONSTRAINT = "",
    PIP_NO_INDEX = "1",
    PIP_FIND_LINKS = folder
  )
}

make_wheel <- function(folder, package, version, links) {
  zipfile <- reticulate::import("zipfile")
  name <- paste0(package, "-", version)
  info <- paste0(name, ".dist-info")
  metadata <- c(
    "Metadata-Version: 2.1",
    paste("Name:", package),
    paste("Version:", version),
    # The wheel of NumPy brings all that Keras and the backends need.
    if (package != "numpy") "Requires-Dist: numpy"
  )
  files <- list(
    paste0(metadata, "\n", collapse = ""),
    "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    paste0(links, "\n"),
    ""
  )
  names(files) <- c(
    file.path(info, c("METADATA", "WHEEL")),
    paste0(package, "_links.pth"),
    file.path(info, "RECORD")
  )
  wheel <- zipfile$ZipFile(
    file.path(folder, paste0(name, "-py3-none-any.whl")),
    "w"
  )
  for (file in names(files)) {
    wheel$writestr(file, files[[file]])
  }
  wheel$close()
}

# Code for run_r(): makes a layer, keeps the error, and types lines of its message. What a session
# says on standard error comes too. Its folder is empty: reticulate would take a .venv there.
session_code <- c(
  "setwd(tempdir())",
  "sink(stdout(), type = 'message')",
  "library(kerasattention)",
  "make <- function() layer_multi_head_attention(num_heads = 2, key_dim = 3, name = 'a')",
  "meet <- function() tryCatch({ make(); 'no error' }, error = identity)",
  "lines_of <- function(cnd) {",
  "  lines <- strsplit(conditionMessage(cnd), '\\n')[[1]]",
  "  trimws(grep('^ {2,}', lines, value = TRUE))",
  "}",
  "type <- function(line) eval(parse(text = line), globalenv())",
  "backend <- function() {",
  "  print(make())",
  "  cat('runs on', reticulate::import('keras')$config$backend(), '\\n')",
  "}"
)

# An environment of variables in which nothing is set, and Keras has no file.
nothing_set <- function(python, frame = parent.frame()) {
  home <- withr::local_tempdir(.local_envir = frame)
  c(
    paste0("RETICULATE_PYTHON=", shQuote(python)),
    paste0("KERAS_HOME=", shQuote(home)),
    "PYTHONPATH=",
    "KERAS_BACKEND=",
    "VIRTUAL_ENV="
  )
}

variables <- function(values) paste0(names(values), "=", shQuote(values))

# A uv that reticulate takes: it gives an environment that is there, or fails without one. What it
# was asked for is in the file `asked` beside it.
stub_uv <- function(python = NULL, version = "0.6.3", frame = parent.frame()) {
  folder <- withr::local_tempdir(.local_envir = frame)
  uv <- file.path(folder, "uv")
  versions <- paste0("{\"version\": \"3.", 13:9, ".1\"}", collapse = ", ")
  writeLines(
    c(
      "#!/bin/sh",
      sprintf(
        "if [ \"$1\" = --version ]; then echo 'uv %s'; exit; fi",
        version
      ),
      sprintf("if [ \"$1\" = python ]; then echo '[%s]'; exit; fi", versions),
      sprintf("echo \"$@\" > '%s/asked'", folder),
      if (is.null(python)) "echo 'no network' >&2; exit 2",
      "while [ \"$1\" != -- ]; do shift; done; shift 2",
      sprintf("exec '%s' \"$@\"", python)
    ),
    uv
  )
  Sys.chmod(uv)
  uv
}
