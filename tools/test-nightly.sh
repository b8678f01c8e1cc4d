#!/usr/bin/env bash
# Run all tests of several devices and processes, those that `make test` leaves out included, on
# each backend; then torch's models in parts with Keras's nightly build, the only one that has them.
#   tools/test-nightly.sh             all of it
#   tools/test-nightly.sh jax torch   some of: jax tensorflow torch nightly
set -uo pipefail
cd "$(dirname "$0")/.."
. ./activate

export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/.setup/jax-cache}
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0
export JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES=-1

files_of() {
  case $1 in
    jax)
      echo sharded_jax ring_jax ring_plan devices_jax processes_jax sharded_options_jax \
        ring_processes_jax quantized_devices_jax
      ;;
    tensorflow) echo several_workers_tensorflow ;;
    torch) echo torch_parameters_torch dtensors_torch ;;
    *)
      echo "There are: jax, tensorflow, torch, nightly. Received: $1" >&2
      return 1
      ;;
  esac
}

# With an empty `-m` the marked tests run too.
run_on() {
  local backend=$1 files
  files=$(files_of "$backend") || return
  # shellcheck disable=SC2086 # one word for each file
  KERAS_BACKEND=$backend python -m pytest -q -p no:xdist -m "" --durations=10 \
    $(printf 'tests/python/test_%s.py ' $files)
}

failed=()
parts=("$@")
[ $# -gt 0 ] || parts=(jax tensorflow torch nightly)
for part in "${parts[@]}"; do
  printf '\n== %s\n' "$part"
  if [ "$part" = nightly ]; then
    BACKEND=torch PYTEST_ADDOPTS='-m ""' FILES=dtensors_torch tools/test-versions.sh nightly ||
      failed+=("$part")
  else
    run_on "$part" || failed+=("$part")
  fi
done
if [ "${#failed[@]}" -gt 0 ]; then
  printf '\nFailed: %s\n' "${failed[*]}" >&2
  exit 1
fi
