# Loading the package starts no Python and changes no environment variable. The hooks run when
# Python is started, and when Keras or our module is loaded.
.onLoad <- function(libname, pkgname) {
  require_python()
  use_environment()
  when_python_starts(before_keras)
  when_python_starts(on_python_start)
  when_loaded("keras", on_keras_load)
  when_loaded("kerasattention", on_module_load)
  register_as_array()
}

when_python_starts <- function(hook) {
  setHook("reticulate.onPyInit", function(...) hook())
  if (reticulate::py_available()) {
    hook()
  }
}

# reticulate runs the hooks of this name after it has imported the Python module.
when_loaded <- function(module, hook) {
  setHook(paste0("reticulate::", module, "::load"), function(...) hook())
  if (reticulate::py_available() && module %in% loaded_modules()) {
    hook()
  }
}
