#' Install Keras and a backend
#'
#' Makes a virtual environment for Python, and installs Keras and the backends there, in versions
#' that the package is tested with. Sessions that name no other Python find the environment by its
#' default name. Neither uv nor conda is needed.
#'
#' An environment of your own works too: any with Keras 3.15 or newer and a backend, see
#' [reticulate::use_virtualenv()]. A Python that you name (`RETICULATE_PYTHON`,
#' `use_virtualenv()`, an active environment, a `.venv` in the working directory) comes first. If
#' the environment already exists, the packages are added to it.
#'
#' # Without this function
#'
#' Where no Python is named, reticulate makes an environment at the first use of a layer, with the
#' tool uv, which it downloads if there is none. A uv that you have installed yourself must be
#' version 0.6.3 or newer; reticulate 1.41 to 1.43 cannot start Python with uv 0.8 or newer. uv also
#' downloads a Python; to use one that is installed, set the environment variable
#' `UV_PYTHON_PREFERENCE` to `only-system` (reticulate 1.43 or newer).
#'
#' # CPU and GPU
#'
#' `gpu = TRUE` installs NVIDIA's CUDA libraries with the backend (`tensorflow[and-cuda]`,
#' `jax[cuda12]`, PyTorch's default build), on Linux and in Windows' WSL2; the driver must be
#' there. On macOS PyTorch uses the GPU without it.
#'
#' PyTorch's default build for Linux contains CUDA (3 GB), also with `gpu = FALSE`. The smaller
#' build for CPUs is in a package index of PyTorch; the installation page of its site has the
#' address, which follows `--index-url` there. Give it to pip with
#' `pip_options = "--extra-index-url <address>"`, or in the environment variable
#' `PIP_EXTRA_INDEX_URL`. pip then takes PyTorch from that index and all else from the usual one.
#'
#' @param backend `"tensorflow"` (the default), `"jax"`, `"torch"`, or several of them. Where
#'   TensorFlow is not among them, Keras uses the first that is installed; see [use_backend()].
#' @param gpu Whether to install a build for NVIDIA GPUs.
#' @param envname Name or path of the environment.
#' @param ... Arguments of [reticulate::virtualenv_create()] (`python`: the path of a Python 3.11
#'   to 3.13, `version`) and of [reticulate::virtualenv_install()] (`pip_options`,
#'   `ignore_installed`).
#'
#' @returns The path of the environment, invisibly.
#' @seealso [use_backend()] chooses among installed backends, [attention_sitrep()] shows what is
#'   installed.
#' @export
#' @examples
#' \dontrun{
#' install_kerasattention("jax")
#' install_kerasattention(c("tensorflow", "torch"))
#' }
install_kerasattention <- function(
  backend = c("tensorflow", "jax", "torch"),
  gpu = FALSE,
  envname = "r-kerasattention",
  ...
) {
  backend <- if (missing(backend)) backends[[1]] else unique(backend)
  check_choices(backend, backends)
  check_flag(gpu)
  check_string(envname)
  dots <- list(...)
  check_dots(dots, c(create_arguments, pip_arguments))
  check_gpu(gpu, backend)
  note_torch_build(backend, gpu, dots$pip_options)

  path <- make_environment(envname, dots[names(dots) %in% create_arguments])
  install_packages(
    envname,
    python_packages(backend, gpu),
    dots[names(dots) %in% pip_arguments]
  )
  use_environment(envname)
  report_installation(envname, backend)
  invisible(path)
}

create_arguments <- c("python", "version")
pip_arguments <- c("pip_options", "ignore_installed")

# The oldest Python that Keras 3.15 takes, and the newest that the tests ran with.
python_range <- ">=3.11,<3.14"

# The versions that the tests ran with, and their patches.
package_ranges <- c(
  keras = ">=3.15,<3.17",
  numpy = ">=1.26,<3",
  tensorflow = ">=2.21,<2.22",
  jax = ">=0.10.2,<0.11",
  torch = ">=2.13,<2.14"
)

check_gpu <- function(
  gpu,
  backend,
  system = Sys.info()[["sysname"]],
  call = caller_env()
) {
  if (!gpu) {
    return(invisible())
  }
  if (system != "Linux") {
    abort_argument(
      "gpu",
      paste("FALSE on", if (system == "Darwin") "macOS" else system),
      gpu,
      hint = c(
        "Builds for NVIDIA GPUs exist for Linux, and for Windows within WSL2.",
        "On macOS PyTorch uses the GPU as it is: `install_kerasattention(\"torch\")`."
      )[if (system == "Darwin") 1:2 else 1],
      call = call
    )
  }
  if (length(backend) > 1) {
    abort(
      "{.arg backend} must be one backend where {.code gpu = TRUE}, not {length(backend)}.",
      hint = paste0(
        "Each brings its own CUDA libraries. Give each an environment: ",
        "`install_kerasattention(\"",
        backend[[1]],
        "\", gpu = TRUE, envname = \"r-",
        backend[[1]],
        "\")`."
      ),
      arg = "backend",
      call = call
    )
  }
}

# PyTorch's build for CPUs is not in the package index that pip reads by default. Nothing is said
# where another source of packages is named.
note_torch_build <- function(
  backend,
  gpu,
  pip_options = NULL,
  system = Sys.info()[["sysname"]]
) {
  settings <- c("PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL", "PIP_FIND_LINKS")
  named <- length(pip_options) > 0 || any(nzchar(Sys.getenv(settings)))
  if (system == "Linux" && "torch" %in% backend && !gpu && !named) {
    cli::cli_inform(
      c(
        "i" = "PyTorch's default build for Linux contains CUDA, a download of about 3 GB.",
        " " = "{.code ?install_kerasattention} tells how to install the build for CPUs."
      ),
      class = "kerasattention_message"
    )
  }
}

# What pip is asked for. Where CUDA is not wanted, TensorFlow's build without it is a fifth of the
# size; it exists for the usual processors.
python_packages <- function(
  backend,
  gpu = FALSE,
  system = Sys.info()[["sysname"]],
  machine = Sys.info()[["machine"]]
) {
  lean <- system == "Linux" && machine %in% c("x86_64", "amd64")
  builds <- c(
    tensorflow = if (gpu) {
      "tensorflow[and-cuda]"
    } else if (lean) {
      "tensorflow-cpu"
    } else {
      "tensorflow"
    },
    jax = if (gpu) "jax[cuda12]" else "jax",
    torch = "torch"
  )
  names <- c("keras", "numpy", backend)
  paste0(c("keras", "numpy", builds[backend]), package_ranges[names])
}

# Calls of reticulate. Its messages and pip's are shown as they come.

make_environment <- function(envname, arguments, call = caller_env()) {
  if (!reticulate::virtualenv_exists(envname)) {
    python <- arguments$python %||% find_starter(arguments$version, call)
    with_installer(
      reticulate::virtualenv_create(envname, python, packages = FALSE),
      paste0("make the environment \"", envname, "\" with ", python),
      call
    )
  }
  dirname(dirname(reticulate::virtualenv_python(envname)))
}

find_starter <- function(version, call) {
  range <- version %||% python_range
  python <- reticulate::virtualenv_starter(range)
  if (is.null(python)) {
    abort(
      "No Python of version {range} was found.",
      hint = paste0(
        "Install Python 3.12 (with its shared library and the module venv), then name it:\n",
        "  kerasattention::install_kerasattention(python = \"path/to/python\")"
      ),
      call = call
    )
  }
  python
}

install_packages <- function(
  envname,
  packages,
  arguments,
  call = caller_env()
) {
  with_installer(
    do.call(
      reticulate::virtualenv_install,
      c(list(envname, packages), arguments)
    ),
    paste0(
      "install ",
      paste(packages, collapse = ", "),
      " into the environment \"",
      envname,
      "\""
    ),
    call
  )
}

with_installer <- function(code, doing, call) {
  tryCatch(code, error = function(cnd) {
    rlang::abort(
      c(
        paste0("Could not ", doing, "."),
        x = python_message(conditionMessage(cnd)),
        i = "The lines above are those of Python or pip. After their cause is gone, make the same call again."
      ),
      class = "kerasattention_error",
      call = call
    )
  })
}

# For this session, as R/zzz.R does in new ones: a hint that gives way to what the user has named.
use_environment <- function(envname = "r-kerasattention") {
  if (reticulate::virtualenv_exists(envname)) {
    reticulate::use_virtualenv(envname, required = FALSE)
  }
}

report_installation <- function(envname, backend) {
  note <- environment_note(envname)
  cli::cli_inform(
    c(
      "v" = "Keras and {.val {backend}} are in the environment {.val {envname}}.",
      "i" = "{note}"
    ),
    class = "kerasattention_message"
  )
}

# How sessions come to use the environment.
environment_note <- function(envname) {
  named <- Sys.getenv("RETICULATE_PYTHON")
  own <- reticulate::virtualenv_python(envname)
  if (nzchar(named) && path.expand(named) != own) {
    paste0(
      "RETICULATE_PYTHON names another Python. To use this one, restart R and type: ",
      "Sys.setenv(RETICULATE_PYTHON = \"",
      own,
      "\")"
    )
  } else if (envname != "r-kerasattention") {
    paste0(
      if (reticulate::py_available()) {
        "Restart R, then type: "
      } else {
        "In each session type: "
      },
      "reticulate::use_virtualenv(\"",
      envname,
      "\")"
    )
  } else if (reticulate::py_available()) {
    "Python runs already: restart R to use the environment."
  } else {
    "This session and new ones use it, unless another Python is named."
  }
}
