#!/usr/bin/env bash
# R CMD build and R CMD check --as-cran, without the network: CRAN's incoming check and
# the question for the current time are left out. Anything but "Status: OK" is a failure.
set -euo pipefail
cd "$(dirname "$0")/.."
. ./activate

output=$PWD/.setup/check
rm -rf "$output"
mkdir -p "$output"
cd "$output"

options=(--as-cran)
if ! command -v pdflatex >/dev/null; then
  echo "check: no pdflatex here, so the PDF manual is not built"
  options+=(--no-manual)
fi

export _R_CHECK_CRAN_INCOMING_=false
export _R_CHECK_SYSTEM_CLOCK_=false
export _R_CHECK_FORCE_SUGGESTS_=false

"$KERASATTENTION_HOME/tools/build.sh" .
R CMD check "${options[@]}" kerasattention_*.tar.gz

if ! tail -n 3 kerasattention.Rcheck/00check.log | grep -q '^Status: OK'; then
  echo "check: errors, warnings or notes; see .setup/check/kerasattention.Rcheck" >&2
  exit 1
fi
