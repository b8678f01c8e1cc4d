test_that("the packages are those of the system, in the ranges that are tested", {
  expect_equal(
    python_packages(backends, system = "Linux", machine = "x86_64"),
    c(
      "keras>=3.15,<3.17",
      "numpy>=1.26,<3",
      "tensorflow-cpu>=2.21,<2.22",
      "jax>=0.10.2,<0.11",
      "torch>=2.13,<2.14"
    )
  )
  tensorflow <- function(...) python_packages("tensorflow", ...)[[3]]
  expect_equal(
    c(
      tensorflow(gpu = TRUE, system = "Linux", machine = "x86_64"),
      tensorflow(system = "Linux", machine = "aarch64"),
      tensorflow(system = "Darwin", machine = "arm64"),
      tensorflow(system = "Windows", machine = "x86-64"),
      python_packages("jax", gpu = TRUE, system = "Linux")[[3]],
      python_packages("torch", gpu = TRUE, system = "Linux")[[3]]
    ),
    c(
      "tensorflow[and-cuda]>=2.21,<2.22",
      rep("tensorflow>=2.21,<2.22", 3),
      "jax[cuda12]>=0.10.2,<0.11",
      "torch>=2.13,<2.14"
    )
  )
})

test_that("the ranges begin where the requirements of R and of Python users begin", {
  lower <- sub(",.*$", "", package_ranges)
  required <- python_requirements("jax", "base")
  expect_equal(required[1:2], paste0(c("keras", "numpy"), lower[1:2]))
  toml <- readLines(system.file(
    "python",
    "pyproject.toml",
    package = "kerasattention"
  ))
  for (name in names(package_ranges)) {
    expect_match(
      toml,
      paste0("\"", name, lower[[name]], "\""),
      fixed = TRUE,
      all = FALSE
    )
  }
  expect_match(toml, "requires-python = \">=3.11\"", fixed = TRUE, all = FALSE)
})

test_that("wrong arguments are errors before anything is installed", {
  expect_snapshot(error = TRUE, {
    install_kerasattention("theano")
    install_kerasattention(gpu = "yes")
    install_kerasattention(envname = NULL)
    install_kerasattention(pip_option = "--quiet")
    check_gpu(TRUE, "torch", "Windows")
    check_gpu(TRUE, "torch", "Darwin")
    check_gpu(TRUE, c("jax", "torch"), "Linux")
    install_kerasattention(envname = "not-there", version = ">=3.99")
  })
})

test_that("the large build of PyTorch is announced where it would be installed", {
  settings <- c("PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL", "PIP_FIND_LINKS")
  withr::local_envvar(setNames(rep("", 3), settings))
  expect_snapshot(note_torch_build(c("jax", "torch"), FALSE, system = "Linux"))
  expect_silent(note_torch_build("jax", FALSE, system = "Linux"))
  expect_silent(note_torch_build("torch", TRUE, system = "Linux"))
  expect_silent(note_torch_build("torch", FALSE, system = "Darwin"))
  expect_silent(note_torch_build("torch", FALSE, "--quiet", system = "Linux"))
  for (setting in settings) {
    withr::with_envvar(setNames("a", setting), {
      expect_silent(note_torch_build("torch", FALSE, system = "Linux"))
    })
  }
})

test_that("where Python was not found, the environment is made and used in the same session", {
  skip_on_cran()
  skip_without_keras()
  backend <- spare_backend()
  home <- withr::local_tempdir()
  # Nothing is named, so reticulate asks uv, which cannot. Then a Python that is not there.
  settings <- list(
    uv = "Sys.unsetenv('RETICULATE_PYTHON')",
    missing = "Sys.setenv(RETICULATE_PYTHON = 'no/such/python')"
  )
  for (case in names(settings)) {
    output <- run_r(
      c(
        settings[[case]],
        session_code,
        "lines <- lines_of(meet())",
        "writeLines(lines)",
        "ours <- grep('install_kerasattention|unsetenv', lines, value = TRUE)",
        "for (line in ours) type(line)",
        "backend()",
        "print(reticulate::py_config()$python)"
      ),
      env = c(
        nothing_set(""),
        paste0("KERAS_BACKEND=", backend),
        paste0("RETICULATE_VIRTUALENV_ROOT=", shQuote(file.path(home, case))),
        paste0("RETICULATE_UV=", shQuote(stub_uv())),
        variables(index_of(c("keras", "numpy", backend)))
      )
    )
    call <- paste0("kerasattention::install_kerasattention(\"", backend, "\")")
    expect_match(output, call, fixed = TRUE, all = FALSE)
    expect_match(output, "This session and new ones use it", all = FALSE)
    expect_match(output, paste("runs on", backend), all = FALSE)
    expect_match(output, file.path(case, "r-kerasattention"), all = FALSE)
  }

  # A new session finds it, with nothing said; the user's own environment goes before it.
  new_session <- function(...) {
    run_r(
      c("Sys.unsetenv('RETICULATE_PYTHON')", session_code, "backend()"),
      env = c(
        nothing_set(""),
        paste0("RETICULATE_VIRTUALENV_ROOT=", shQuote(file.path(home, "uv"))),
        ...
      )
    )
  }
  expect_match(new_session(), paste("runs on", backend), all = FALSE)
})

test_that("the lines for a Python that names another Python work", {
  withr::local_envvar(RETICULATE_PYTHON = "other/python")
  note <- environment_note("r-kerasattention")
  expect_match(note, "Sys.setenv(RETICULATE_PYTHON = \"", fixed = TRUE)
  withr::local_envvar(RETICULATE_PYTHON = reticulate::virtualenv_python("mine"))
  expect_match(
    environment_note("mine"),
    "use_virtualenv(\"mine\")",
    fixed = TRUE
  )
})

# Downloads about 200 MB: KERASATTENTION_NETWORK=1 runs it.
test_that("a real installation from the package index works", {
  skip_if_not(
    Sys.getenv("KERASATTENTION_NETWORK") == "1",
    "the network is not asked for"
  )
  home <- withr::local_tempdir()
  output <- run_r(
    c(
      "Sys.unsetenv('RETICULATE_PYTHON')",
      session_code,
      "install_kerasattention('jax')",
      "backend()"
    ),
    env = c(
      nothing_set(""),
      paste0("RETICULATE_VIRTUALENV_ROOT=", shQuote(home))
    )
  )
  expect_match(output, "runs on jax", all = FALSE)
})
