# torch for Python brings a fast BLAS in its own library. Where R has loaded another one
# before (Debian's reference BLAS, say), Linux's linker hands torch the functions of R's,
# and training was seven times slower in R than in Python. Loaded so that its own
# functions come first, torch is as fast in R as it is in Python.

torch_with_its_own_blas <- "
import ctypes, importlib.util, os, sys
spec = None if 'torch' in sys.modules else importlib.util.find_spec('torch')
if spec is not None:
    library = os.path.join(spec.submodule_search_locations[0], 'lib', 'libtorch_cpu.so')
    if os.path.exists(library):
        ctypes.CDLL(library, mode=os.RTLD_DEEPBIND | os.RTLD_LAZY | os.RTLD_GLOBAL)
"

# Python has been started, by whomever; torch has most likely not been loaded yet.
on_python_start <- function() {
  if (Sys.info()[["sysname"]] != "Linux" || wanted_backend() != "torch") {
    return(invisible())
  }
  # Where this fails torch loads as it always did, only slower; an error in here would
  # look like one of Python's start.
  tryCatch(
    reticulate::py_run_string(torch_with_its_own_blas, local = TRUE),
    error = function(cnd) NULL
  )
  invisible()
}
