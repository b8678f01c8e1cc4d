#!/usr/bin/env bash
# Which lines and branches the tests reach: the Python suite on each backend, their union, and R's.
#   tools/coverage.sh                        all of it; pages in .setup/coverage/
#   tools/coverage.sh "torch jax"            the Python part, on these backends
set -uo pipefail
cd "$(dirname "$0")/.."
. ./activate

folder=$PWD/.setup/coverage
read -ra backends <<<"${1:-tensorflow jax torch}"
mkdir -p "$folder"
rm -f "$folder"/.coverage*

status=0
COVERAGE_FOLDER=$folder tools/test.sh "${backends[@]/#/python-}" || status=1
printf '\n== Python, %s together\n' "${backends[*]}"
COVERAGE_FILE=$folder/.coverage python -m coverage combine --quiet "$folder"
COVERAGE_FILE=$folder/.coverage python -m coverage html --quiet --directory "$folder/python"
COVERAGE_FILE=$folder/.coverage python -m coverage report --show-missing --skip-covered \
  --fail-under=95 || status=1

if [ $# -eq 0 ]; then
  printf '\n== R\n'
  Rscript tools/coverage.R "$folder" || status=1
fi
exit $status
