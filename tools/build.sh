#!/usr/bin/env bash
# R CMD build from a copy of the sources: kerasattention_VERSION.tar.gz.
#   tools/build.sh           in this folder
#   tools/build.sh FOLDER    in FOLDER, which is there
# R CMD build copies the whole folder before it leaves anything out, and here that would be the
# gigabytes that `make setup` has installed.
set -euo pipefail
output=$(cd "${1:-$(dirname "$0")/..}" && pwd)
cd "$(dirname "$0")/.."
. ./activate

# What git tracks, or would if it were added; without git all but what tools write.
sources() {
  if [ -e .git ] && command -v git >/dev/null; then
    git ls-files -z --cached --others --exclude-standard |
      while IFS= read -r -d '' file; do
        [ ! -f "$file" ] || printf '%s\0' "$file" # a deleted file is tracked until it is committed
      done | tar --null -T - -cf -
  else
    tar -cf - --exclude=./.venv --exclude=./.rlib --exclude=./.setup --exclude=./.git \
      --exclude=./docs --exclude='./*.tar.gz' .
  fi
}

copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
mkdir "$copy/kerasattention"
sources | tar -C "$copy/kerasattention" -xf -
cd "$copy"
R CMD build kerasattention
mv kerasattention_*.tar.gz "$output"
