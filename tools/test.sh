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

# JAX compiles most programs of the tests more than once: the same in another test or worker.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/.setup/jax-cache}
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0
export JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES=-1

# The tests start many processes, each of which would compile the module's files anew.
unset PYTHONDONTWRITEBYTECODE

# `make test-quick` leaves out what trains, decodes and compiles at length; run_r() of the R suite
# looks for QUICK too.
quick=()
if [ -n "${QUICK:-}" ]; then
  for name in copies decode_trials decoding files gradients kept_files published_models rechecks \
    remat repeats runner_tensorflow sampling stale_decoders token_checks unknown_lengths; do
    quick+=("--ignore=tests/python/test_$name.py")
  done
fi

# `make coverage` names a folder for the counts of lines and branches.
coverage=()
if [ -n "${COVERAGE_FOLDER:-}" ]; then
  coverage=(--cov=kerasattention --cov-branch --cov-report=)
fi

# XLA compiles the small programs of the tests in a tenth of the time without optimisations. The
# suites rpy2-jax and fuzz-jax keep XLA's defaults.
python_jax_flags="--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
python_jax_flags+=" --xla_llvm_disable_expensive_passes=true"
python_jax_flags+=" --xla_cpu_parallel_codegen_split_count=1"

pytest_on() {
  local backend=$1 folder=$2 report=$3
  shift 3
  COVERAGE_FILE=${COVERAGE_FOLDER:-.}/.coverage.$backend KERAS_BACKEND=$backend \
    python -m pytest "$folder" --quiet --junitxml="$report" "$@"
}

# A fixed number of cases, so that a faster machine does not reach others than the last one did.
fuzz() {
  case $1 in
    torch) cases=(400 20) ;;
    tensorflow) cases=(64 8) ;;
    *) cases=(32 1) ;;
  esac
  LAYERS=${cases[0]} MODELS=${cases[1]} REPORT=$2 tools/fuzz.sh "$1" "${FUZZ_SECONDS:-60}"
}

run_suite() {
  local suite=$1 report=$results/$1.xml
  # The workers share the cores: two for the Python suites, one process where R runs. Each begins
  # with files of its own, whose tests share what they compile.
  local workers=(-n "${WORKERS:-2}" --dist worksteal)
  case $suite in
    python-jax)
      XLA_FLAGS="${XLA_FLAGS-$python_jax_flags}" \
        pytest_on jax tests/python "$report" "${workers[@]}" "${quick[@]}" "${coverage[@]}"
      ;;
    python-torch)
      # Threads of the two workers would wait for each other in loops that take the time of both.
      OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} \
        pytest_on torch tests/python "$report" "${workers[@]}" "${quick[@]}" "${coverage[@]}"
      ;;
    python-*) pytest_on "${suite#python-}" tests/python "$report" "${workers[@]}" "${quick[@]}" "${coverage[@]}" ;;
    fuzz-*) fuzz "${suite#fuzz-}" "$report" ;;
    rpy2-*) pytest_on "${suite#rpy2-}" tests/rpy2 "$report" -p no:xdist ;;
    r-*-sessions | r-*-rest)
      local backend=${suite#r-}
      KERAS_BACKEND=${backend%-*} Rscript tools/test-r.R "$report" "${suite##*-}"
      ;;
    r-*) KERAS_BACKEND=${suite#r-} Rscript tools/test-r.R "$report" ;;
    *)
      echo "No suite '$suite'. There are: python-BACKEND, r-BACKEND, r-BACKEND-sessions, r-BACKEND-rest," \
        "rpy2-BACKEND, fuzz-BACKEND." >&2
      return 2
      ;;
  esac
}

# The Python suites take both cores, one after the other. The others are one process each, of
# which two run at a time: their output comes when they have ended.
run_and_note() {
  local suite=$1 started=$SECONDS
  run_suite "$suite"
  echo "$? $((SECONDS - started))" >"$results/$suite.status"
}

run_in_background() {
  local suite=$1
  run_and_note "$suite" >"$results/$suite.log" 2>&1
  printf '\n== %s ended (%d s so far)\n' "$suite" "$SECONDS"
  cat "$results/$suite.log"
}

suites=("$@")
if [ "${#suites[@]}" -eq 0 ]; then
  # The longest of those beside each other comes first.
  suites=(python-tensorflow python-jax python-torch r-tensorflow-sessions r-tensorflow-rest
    fuzz-jax fuzz-tensorflow fuzz-torch rpy2-jax)
fi
beside=()
for suite in "${suites[@]}"; do
  case $suite in python-*) ;; *) beside+=("$suite") ;; esac
done
trap 'for job in $(jobs -p); do kill -- "-$job" 2>/dev/null; done' EXIT
number=0
running=0
for suite in "${suites[@]}"; do
  number=$((number + 1))
  is_alone=$([[ $suite == python-* || ${#beside[@]} -lt 2 ]] && echo 1)
  while [ "$running" -ge "${is_alone:-2}" ]; do
    wait -n
    running=$((running - 1))
  done
  printf '\n== %s (suite %d of %d, %d s so far)\n' "$suite" "$number" "${#suites[@]}" "$SECONDS"
  if [ -n "$is_alone" ]; then
    run_and_note "$suite"
  else
    # Without job control the shell would have it ignore interrupts, which R's tests send.
    set -m
    run_in_background "$suite" </dev/null &
    set +m
    running=$((running + 1))
  fi
done
wait
python tools/summarise_tests.py "$results" "$SECONDS" "${suites[@]}"
