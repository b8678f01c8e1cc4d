#!/usr/bin/env bash
# Run the suites named (all where none is) and end with one line of counts.
#   tools/test.sh                      all three suites, the Python one on each backend
#   tools/test.sh python-jax r rpy2    some of them
# A suite that cannot start, runs no test or only skips has failed.
set -uo pipefail
cd "$(dirname "$0")/.."
. ./activate

results=.setup/tests
rm -rf "$results"
mkdir -p "$results"

pytest_on() {
  local backend=$1 folder=$2 report=$3
  shift 3
  KERAS_BACKEND=$backend python -m pytest "$folder" --quiet --junitxml="$report" "$@"
}

run_suite() {
  local suite=$1 report=$results/$1.xml
  # The workers share the cores: two for the Python suites, one process where R runs.
  case $suite in
    python-*) pytest_on "${suite#python-}" tests/python "$report" -n "${WORKERS:-2}" ;;
    fuzz-*) REPORT=$report tools/fuzz.sh "${suite#fuzz-}" "${FUZZ_SECONDS:-40}" ;;
    rpy2-*) pytest_on "${suite#rpy2-}" tests/rpy2 "$report" -p no:xdist ;;
    r-*) KERAS_BACKEND=${suite#r-} Rscript tools/test-r.R "$report" ;;
    *)
      echo "No suite '$suite'. There are: python-BACKEND, r-BACKEND, rpy2-BACKEND, fuzz-BACKEND." >&2
      return 2
      ;;
  esac
}

suites=("$@")
if [ "${#suites[@]}" -eq 0 ]; then
  suites=(python-tensorflow python-jax python-torch r-tensorflow rpy2-jax
    fuzz-tensorflow fuzz-jax fuzz-torch)
fi
for suite in "${suites[@]}"; do
  printf '\n== %s\n' "$suite"
  started=$SECONDS
  run_suite "$suite"
  echo "$? $((SECONDS - started))" >"$results/$suite.status"
done
python tools/summarise_tests.py "$results" "${suites[@]}"
