#!/usr/bin/env bash
# Put reticulate >= 1.41 into the R library given as $1: from CRAN where it can
# be reached, else from the source that Debian 13 carries. The source alone is
# taken: that release's binaries would bring its C library along.
set -euo pipefail

library=$1
# This library only: a reticulate in another one, as of a second copy of the project that the shell
# has activated, is not there when the package is installed.
export R_LIBS=$library R_LIBS_USER=$library
minimum=1.41
suite=trixie
jobs=$(nproc 2>/dev/null || echo 2)

has_reticulate() {
  Rscript --vanilla -e '
    version <- tryCatch(utils::packageVersion("reticulate"), error = function(e) "0")
    quit(status = if (version >= commandArgs(TRUE)[[1]]) 0 else 1)
  ' "$minimum" >/dev/null 2>&1
}

from_cran() {
  Rscript --vanilla -e '
    arguments <- commandArgs(TRUE)
    repos <- getOption("repos")
    if (is.na(repos["CRAN"]) || identical(repos[["CRAN"]], "@CRAN@")) {
      utils::chooseCRANmirror(ind = 1, graphics = FALSE)
    }
    options(timeout = 10)
    found <- suppressWarnings(utils::available.packages())
    if (!"reticulate" %in% rownames(found)) quit(status = 1)
    options(timeout = 300, Ncpus = as.integer(arguments[[2]]))
    utils::install.packages("reticulate", lib = arguments[[1]])
  ' "$library" "$jobs" && has_reticulate
}

# The machine's own Debian sources, with the suite replaced: the same mirror, the
# same keys. Understands both formats apt reads.
write_sources() {
  local codename=$1 output=$2
  local files=() file
  for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.sources /etc/apt/sources.list.d/*.list; do
    [ -r "$file" ] && files+=("$file")
  done
  [ "${#files[@]}" -gt 0 ] || return 1
  awk -v codename="$codename" -v suite="$suite" '
    function flush() {
      if (uris != "" && (" " suites " ") ~ (" " codename " ")) {
        printf "Types: deb-src\nURIs: %s\nSuites: %s\nComponents: main\n", uris, suite
        if (key != "") printf "Signed-By: %s\n", key
        found = 1
        exit
      }
      uris = suites = key = ""
    }
    FNR == 1 { flush(); deb822 = FILENAME ~ /\.sources$/ }
    deb822 && /^[[:space:]]*$/ { flush(); next }
    deb822 && /^URIs:/ { sub(/^URIs:[[:space:]]*/, ""); uris = $0; next }
    deb822 && /^Suites:/ { sub(/^Suites:[[:space:]]*/, ""); suites = $0; next }
    deb822 && /^Signed-By:/ { sub(/^Signed-By:[[:space:]]*/, ""); key = $0; next }
    !deb822 && /^deb[[:space:]]/ {
      if (match($0, /signed-by=[^] ]+/)) key = substr($0, RSTART + 10, RLENGTH - 10)
      sub(/\[[^]]*\]/, "")
      uris = $2
      suites = $3
      flush()
    }
    END { if (!found) flush(); exit !found }
  ' "${files[@]}" >"$output"
}

from_debian() {
  command -v apt-get >/dev/null || return 1
  local codename work
  codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
  work=$(mktemp -d)
  # shellcheck disable=SC2064
  trap "rm -rf '$work'" RETURN
  mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/source"
  chmod -R 755 "$work"
  write_sources "$codename" "$work/next.sources" || return 1
  local options=(
    -q -o "Dir::Etc::sourcelist=$work/next.sources" -o Dir::Etc::sourceparts=/dev/null
    -o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work/cache" -o APT::Sandbox::User=
  )
  apt-get "${options[@]}" update &&
    (cd "$work/source" && apt-get "${options[@]}" source --tar-only r-cran-reticulate) || return 1
  local tarballs=("$work"/source/*.orig.tar.*)
  [ -f "${tarballs[0]}" ] || return 1
  mkdir "$work/reticulate"
  tar -xf "${tarballs[0]}" -C "$work/reticulate" --strip-components=1
  R CMD INSTALL --no-docs --library="$library" "$work/reticulate"
  has_reticulate
}

mkdir -p "$library"
if has_reticulate; then
  exit 0
fi
if from_cran; then
  echo "reticulate comes from CRAN"
elif echo "CRAN cannot be reached: trying Debian's source" && from_debian; then
  echo "reticulate comes from Debian's source"
else
  echo "reticulate >= $minimum could not be installed into $library." >&2
  exit 1
fi
