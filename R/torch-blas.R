# torch for Python brings a fast BLAS in its own library. Where R has loaded another one
# before (Debian's reference BLAS, say), Linux's linker hands torch the functions of R's,
# which are slow. Loaded so that its own functions come first, torch uses those.

torch_with_its_own_blas <- "
import ctypes, importlib.util, os, sys
spec = None if 'torch' in sys.modules else importlib.util.find_spec('torch')
if spec is not None:
    library = os.path.join(spec.submodule_search_locations[0], 'lib', 'libtorch_cpu.so')
    if os.path.exists(library):
        ctypes.CDLL(library, mode=os.RTLD_DEEPBIND | os.RTLD_LAZY | os.RTLD_GLOBAL)
"

# Python has been started, by whomever; torch has most likely not been loaded yet.
on_python_start <- function(
  backend = wanted_backend(),
  code = torch_with_its_own_blas
) {
  if (Sys.info()[["sysname"]] != "Linux" || backend != "torch") {
    return(invisible())
  }
  # Where this fails torch loads as it always did, only slower.
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
