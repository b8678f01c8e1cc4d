# Python's torch has a fast BLAS in its own library. Where R has loaded another one before, for
# instance Debian's reference BLAS, the linker of Linux gives torch the slow functions of R's.
# Loaded with RTLD_DEEPBIND, torch uses its own.

torch_with_its_own_blas <- "
import ctypes, importlib.util, os, sys
spec = None if 'torch' in sys.modules else importlib.util.find_spec('torch')
if spec is not None:
    library = os.path.join(spec.submodule_search_locations[0], 'lib', 'libtorch_cpu.so')
    if os.path.exists(library):
        ctypes.CDLL(library, mode=os.RTLD_DEEPBIND | os.RTLD_LAZY | os.RTLD_GLOBAL)
"

# Runs after Python was started, most likely before torch is loaded.
on_python_start <- function(
  backend = wanted_backend(),
  code = torch_with_its_own_blas
) {
  if (Sys.info()[["sysname"]] != "Linux" || backend != "torch") {
    return(invisible())
  }
  # Where this fails, torch works with R's BLAS, but slowly.
  rlang::try_fetch(
    reticulate::py_run_string(code, local = TRUE),
    error = function(cnd) {
      cli::cli_warn(
        c(
          "torch may be slow in this session: its own BLAS could not be loaded first.",
          "i" = "Training and generation give the same results."
        ),
        parent = cnd,
        class = "kerasattention_warning"
      )
    }
  )
  invisible()
}
