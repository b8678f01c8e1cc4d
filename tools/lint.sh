#!/usr/bin/env bash
# Formatters in checking mode, then linters and pyright. All run, then the worst result counts.
set -uo pipefail
cd "$(dirname "$0")/.."
. ./activate

r_files=(R tests/testthat tests/fuzz tools/*.R inst/examples bench vignettes)
present=()
for file in "${r_files[@]}"; do [ -e "$file" ] && present+=("$file"); done

status=0
ruff format --check . || status=1
ruff check . || status=1
basedpyright || status=1 # as `make typecheck`, which would set up again
air format --check "${present[@]}" || status=1
Rscript --vanilla -e '
  found <- do.call(c, lapply(commandArgs(TRUE), function(path) {
    if (dir.exists(path)) lintr::lint_dir(path) else lintr::lint(path)
  }))
  if (length(found) > 0) {
    print(structure(found, class = "lints"))
    quit(status = 1)
  }
' "${present[@]}" || status=1
exit $status
