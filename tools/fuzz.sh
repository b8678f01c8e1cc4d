#!/usr/bin/env bash
# Random layers, calls and models against the float64 reference, on each backend in turn.
#   tools/fuzz.sh "torch jax" 120 --seed 3     60 seconds for each of two backends
# Ends with status 1 if anything was found. A JUnit report goes to $REPORT where it is set.
# At most $LAYERS layers and $MODELS models are run where these are set.
set -uo pipefail
cd "$(dirname "$0")/.."
. ./activate

read -ra backends <<<"$1"
seconds=$2
shift 2
# Classes of cases to leave out, none by default: see `python tests/fuzz/layers.py --help`.
without=${WITHOUT-}

# A case is small: torch's threads would wait for each other for six times as long as they compute.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

status=0
for backend in "${backends[@]}"; do
  for fuzzer in layers models; do
    # A third of the time is for models.
    [ "$fuzzer" = layers ] && share=2 || share=1
    [ "$fuzzer" = layers ] && most=${LAYERS-} || most=${MODELS-}
    python "tests/fuzz/$fuzzer.py" --backend "$backend" --without "$without" \
      --seconds $((seconds * share / 3 / ${#backends[@]})) ${most:+--cases "$most"} \
      ${REPORT:+--report "$REPORT"} "$@" ||
      status=1
  done
done
exit $status
