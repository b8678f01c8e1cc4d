#!/usr/bin/env bash
# Set up everything the project needs: system packages, Python in .venv/, R packages
# in .rlib/. Run it as often as you like: what is there already is left alone.
#   tools/setup.sh           what the demo, the tests and the checks need
#   tools/setup.sh --peers   also the packages that `make bench` compares with, and keras3
#   tools/setup.sh --quality also what `make coverage` and `make mutants` use
set -euo pipefail
cd "$(dirname "$0")/.."

root=$PWD
venv=$root/.venv
library=$root/.rlib
logs=$root/.setup

# What apt installs where it is the system's package manager.
system_packages=(
  r-base-dev python3-dev python3-venv pandoc qpdf tidy make ca-certificates
  # DESCRIPTION's Imports and Suggests, and what reticulate is built with
  r-cran-cli r-cran-generics r-cran-ggplot2 r-cran-knitr r-cran-rlang r-cran-rmarkdown
  r-cran-testthat r-cran-withr
  r-cran-here r-cran-jsonlite r-cran-matrix r-cran-png r-cran-rappdirs r-cran-rcpp r-cran-rcpptoml
  # documentation and lint
  r-cran-lintr r-cran-nlme r-cran-pkgdown r-cran-roxygen2
)

# The same for systems without apt, from CRAN.
r_packages=(cli generics ggplot2 knitr lintr nlme pkgdown rlang rmarkdown roxygen2 testthat withr)

if [ "${1:-}" = "--quality" ]; then
  system_packages+=(r-cran-covr)
  r_packages+=(covr)
fi

say() { printf 'setup: %s\n' "$*"; }

fail() {
  printf '\nsetup failed at: %s\n' "$1" >&2
  shift
  printf '  %s\n' "$@" >&2
  exit 1
}

# Runs a command with its output in a log; on failure shows the end of it.
logged() {
  local log=$logs/$1.log
  shift
  if ! "$@" >"$log" 2>&1; then
    printf '\n' >&2
    tail -n 15 "$log" | sed 's/^/  | /' >&2
    printf '  (all of it: %s)\n' "${log#"$root"/}" >&2
    return 1
  fi
}

stamped() { [ -f "$1" ] && [ "$(cat "$1")" = "$2" ]; }

as_root() {
  if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

install_system_packages() {
  local missing=() package
  if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
    check_commands
    return
  fi
  local installed
  installed=$(dpkg-query -W -f '${db:Status-Abbrev}${Package}\n' 2>/dev/null | sed -n 's/^ii *//p')
  for package in "${system_packages[@]}"; do
    grep -qxF "$package" <<<"$installed" || missing+=("$package")
  done
  [ "${#missing[@]}" -gt 0 ] || return 0

  local command="apt-get install --no-install-recommends ${missing[*]}"
  if [ "$(id -u)" -ne 0 ] && ! command -v sudo >/dev/null; then
    fail "system packages" "They need root. Ask an administrator to run:" "$command"
  fi
  say "system packages: installing ${#missing[@]} with apt (${missing[*]})"
  logged apt-update as_root apt-get -q update ||
    say "apt-get update failed; trying with the package lists that are there"
  logged apt-install as_root env DEBIAN_FRONTEND=noninteractive \
    apt-get -q -y install --no-install-recommends "${missing[@]}" ||
    fail "system packages" "Run it by hand and look at what apt says:" "$command"
}

check_commands() {
  local command
  for command in R Rscript pandoc; do
    command -v "$command" >/dev/null ||
      fail "system packages" "\`$command\` is not on the PATH." \
        "Install R (4.2 or newer) and pandoc with your system's package manager, then try again."
  done
}

# reticulate loads Python as a shared library, so an interpreter without one is of no use.
find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11; do
    [ -n "$candidate" ] && command -v "$candidate" >/dev/null || continue
    if "$candidate" - >/dev/null 2>&1 <<'PYTHON'
import ensurepip, sys, sysconfig, venv
shared = sysconfig.get_config_var("Py_ENABLE_SHARED") or sysconfig.get_config_var("PYTHONFRAMEWORK")
sys.exit(not ((3, 11) <= sys.version_info < (3, 14) and shared))
PYTHON
    then
      echo "$candidate"
      return
    fi
  done
  return 1
}

make_venv() {
  if "$venv/bin/python" -c '' 2>/dev/null; then
    return
  fi
  local python
  python=$(find_python) ||
    fail "Python" "No Python 3.11 to 3.13 with a shared library (and the venv module) was found." \
      "Install one (Debian, Ubuntu: python3 python3-venv), or name one: make setup PYTHON=/path/to/python3"
  say "Python: making .venv with $("$python" --version)"
  rm -rf "$venv"
  logged venv "$python" -m venv "$venv" ||
    fail "Python" "Making the virtual environment did not work." "Debian, Ubuntu: install python3-venv."
}

# The pinned requirements of one group of pyproject.toml, one a line.
requirements() {
  "$venv/bin/python" - "$1" <<'PYTHON'
import sys, tomllib
with open("pyproject.toml", "rb") as file:
    print(*tomllib.load(file)["dependency-groups"][sys.argv[1]], sep="\n")
PYTHON
}

install_group() {
  local group=$1 list=$logs/requirements-$1.txt stamp=$venv/kerasattention-$1.stamp sum
  shift
  requirements "$group" >"$list"
  sum=$(cksum <"$list")
  if stamped "$stamp" "$sum"; then
    return
  fi
  say "Python: installing $(wc -l <"$list" | tr -d ' ') pinned packages of the group '$group' (a minute or more)"
  logged "pip-$group" "$venv/bin/python" -m pip install --disable-pip-version-check "$@" -r "$list" ||
    fail "Python packages ($group)" \
      "Is the package index reachable? Try: .venv/bin/pip download --no-deps keras" \
      "Space: all of it takes 3 GB; with PyTorch's CUDA build twice as much." \
      "For the CPU build set PIP_EXTRA_INDEX_URL to PyTorch's CPU index, or start afresh: make clean-all"
  echo "$sum" >"$stamp"
}

# Systems without apt: CRAN's packages in the project's library.
install_r_packages() {
  local stamp=$library/kerasattention-packages.stamp sum
  sum=$(printf '%s ' "${r_packages[@]}" | cksum)
  if stamped "$stamp" "$sum"; then
    return
  fi
  logged r-packages env R_LIBS="$library" Rscript --vanilla tools/r-packages.R "$library" "${r_packages[@]}" ||
    fail "R packages" "Is CRAN reachable? Try in R: install.packages(\"cli\")"
  echo "$sum" >"$stamp"
}

install_reticulate() {
  local stamp=$library/kerasattention-reticulate.stamp
  if [ -f "$stamp" ] && [ -d "$library/reticulate" ]; then
    return
  fi
  say "R: installing reticulate into .rlib (a minute at most)"
  logged reticulate tools/reticulate.sh "$library" ||
    fail "reticulate" "1.41 or newer is needed, from CRAN or from Debian 13's source; neither worked." \
      "With another mirror: Rscript -e 'install.packages(\"reticulate\", lib = \".rlib\", repos = \"https://...\")'"
  date >"$stamp"
}

# keras3, whose code in README and articles runs where it is installed. It is in no Debian release.
install_keras3() {
  local stamp=$library/kerasattention-keras3.stamp
  if [ -f "$stamp" ] && [ -d "$library/keras3" ]; then
    return
  fi
  say "R: installing keras3 into .rlib from CRAN (a few minutes)"
  if logged keras3 env R_LIBS="$library" Rscript --vanilla tools/r-packages.R "$library" keras3; then
    date >"$stamp"
  else
    say "keras3 was not installed: CRAN cannot be reached, or it does not fit this R." \
      "Code for keras3 in README and articles is shown without its output. All else works."
  fi
}

install_package() {
  local stamp=$library/kerasattention-source.stamp sum
  sum=$(
    find DESCRIPTION NAMESPACE R inst man -type f ! -path '*/__pycache__/*' |
      LC_ALL=C sort | xargs cksum | cksum
  )
  if stamped "$stamp" "$sum" && [ -d "$library/kerasattention" ]; then
    return
  fi
  say "R: installing kerasattention into .rlib"
  logged package env R_LIBS="$library" R CMD INSTALL --library="$library" . ||
    fail "the package kerasattention" "Its sources do not install; the lines above say where."
  echo "$sum" >"$stamp"
}

mkdir -p "$logs" "$library"
if command -v flock >/dev/null; then
  exec 9>"$logs/lock"
  flock 9
fi

install_system_packages
make_venv
install_r_packages
install_reticulate
install_group dev
install_group models --no-deps
if [ "${1:-}" = "--peers" ]; then
  install_group peers --no-deps
  install_keras3
elif [ "${1:-}" = "--quality" ]; then
  install_group quality
fi
install_package
say "ready. For a shell of your own: . ./activate"
