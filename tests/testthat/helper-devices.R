# What a session of R prints in which JAX has 8 devices, by the names of its parts. It is run once.
devices_session <- local({
  found <- NULL
  function() {
    skip_without_keras()
    if (!reticulate::py_module_available("jax")) {
      skip("JAX is not installed")
    }
    if (is.null(found)) {
      found <<- split_parts(run_r(devices_code(), devices_variables()))
    }
    found
  }
})

devices_variables <- function() {
  flags <- c(
    "--xla_force_host_platform_device_count=8",
    # Without optimisations XLA compiles in a seventh of the time.
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1"
  )
  c(
    "KERAS_BACKEND=jax",
    paste0("XLA_FLAGS=", shQuote(paste(flags, collapse = " ")))
  )
}

devices_code <- function() {
  readLines(test_path("devices.R"))
}

# The lines behind each line "== NAME".
split_parts <- function(lines) {
  part <- cumsum(startsWith(lines, "== "))
  parts <- split(lines, part)
  parts <- parts[names(parts) != "0"]
  names(parts) <- vapply(parts, function(x) sub("^== ", "", x[[1]]), "")
  lapply(parts, function(x) x[-1])
}
