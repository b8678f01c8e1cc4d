#!/usr/bin/env bash
# Run a part of the Python suite with other versions of Keras, NumPy and Python than `make
# setup` installs: the oldest that DESCRIPTION allows, the newest, and Keras's nightly.
#   tools/test-versions.sh                    all of them, on torch
#   BACKEND=jax tools/test-versions.sh oldest nightly
#   FILES="convert files" tools/test-versions.sh newest    other files than those below
# Each has an environment of its own in .setup/versions/ (1 GB with torch), made at its first
# run. A version whose Python is not on this machine has failed.
set -uo pipefail
cd "$(dirname "$0")/.."

# Name, Python, NumPy, Keras. The first is what DESCRIPTION, `oldest_keras` in R/installation.R and
# inst/python/pyproject.toml declare.
versions=(
  "oldest  3.11 1.26.4 keras==3.15.1"
  "newest  3.13 2.4.6  keras==3.15.1"
  "nightly 3.11 2.4.6  keras-nightly"
)

# What depends on Keras itself: its private names, its layers against ours, files, copies of
# models, decoding, what its operations make of float64. The kernels do not, and are left to
# `make test`.
files=(keras_names defects convert weight_files decoding scores importance prune lora checkpoint \
  against_keras files key_value_of latent_attention relative_keys prompt_arguments key_as_value \
  layers_coordinates float64)
[ -z "${FILES:-}" ] || read -ra files <<<"$FILES"

backend=${BACKEND:-torch}
folder=.setup/versions
mkdir -p "$folder"

find_python() {
  local root candidate
  root=$(command -v pyenv >/dev/null && pyenv root)
  for candidate in "$(command -v "python$1")" "${root:-/nowhere}/versions/$1".*/bin/python; do
    "$candidate" -c 'import venv' 2>/dev/null && echo "$candidate" && return
  done
  return 1
}

backend_package() {
  case $backend in
    torch) echo "torch==2.13.0" ;;
    tensorflow) echo "tensorflow-cpu==2.21.0" ;;
    jax) echo "jax" ;; # the newest that takes this NumPy
    *)
      echo "BACKEND must be torch, tensorflow or jax. Received: $backend" >&2
      return 1
      ;;
  esac
}

make_venv() {
  local venv=$1 python=$2 numpy=$3 keras=$4 interpreter package
  if [ -f "$venv/ready" ]; then
    return
  fi
  package=$(backend_package) || return
  if ! interpreter=$(find_python "$python"); then
    echo "Python $python was not found on the PATH nor among pyenv's versions." >&2
    return 1
  fi
  rm -rf "$venv"
  "$interpreter" -m venv "$venv" &&
    "$venv/bin/pip" install -q --disable-pip-version-check "$package" "numpy==$numpy" \
      "${keras/-nightly/}" pytest==9.2.0 hypothesis || return
  if [ "$keras" = keras-nightly ]; then
    # Both write the folder keras/, and TensorFlow asks for the other one.
    "$venv/bin/pip" uninstall -q -y keras &&
      "$venv/bin/pip" install -q --no-deps --pre keras-nightly || return
  fi
  touch "$venv/ready"
}

tests=("${files[@]/#/tests/python/test_}")
tests=("${tests[@]/%/.py}")
failed=()
for row in "${versions[@]}"; do
  read -r name python numpy keras <<<"$row"
  if [ $# -gt 0 ] && [[ " $* " != *" $name "* ]]; then
    continue
  fi
  printf '\n== %s: Python %s, NumPy %s, %s, %s\n' "$name" "$python" "$numpy" "$keras" "$backend"
  venv=$folder/$name-$backend
  if ! make_venv "$venv" "$python" "$numpy" "$keras" ||
    ! KERAS_BACKEND=$backend PYTHONPATH=inst/python "$venv/bin/python" -m pytest -q "${tests[@]}"; then
    failed+=("$name")
  fi
done
if [ "${#failed[@]}" -gt 0 ]; then
  printf '\nFailed: %s\n' "${failed[*]}" >&2
  exit 1
fi
