#!/usr/bin/env bash
# Mutation testing of the engine and the layers with mutmut, on torch: a sample of the mutants,
# drawn with a seed. Ends with the share killed and the names of the survivors.
#   tools/mutants.sh 300 1                     300 mutants, seed 1
#   tools/mutants.sh 100 1 'kerasattention.attend.mask.*'
#   tools/mutants.sh show NAME                 the change that a mutant is
set -euo pipefail
cd "$(dirname "$0")/.."
. ./activate

folder=$PWD/.setup/mutants
export KERAS_BACKEND=torch OMP_NUM_THREADS=1 PYTHONPATH=
mutmut=("$PWD/.venv/bin/python" -m mutmut)

if [ "${1:-}" = show ]; then
  cd "$folder"
  exec "${mutmut[@]}" show "$2"
fi
count=${1:-300} seed=${2:-1} names=${3:-*}

# The quick test files of the two folders. A mutant meets those of their tests that call it.
read -ra tests <<<"$(python tools/sample_mutants.py tests)"

rm -rf "$folder"
mkdir -p "$folder"
cp -r inst/python/kerasattention tests "$folder"
cat >"$folder/pyproject.toml" <<END
[tool.mutmut]
source_paths = ["kerasattention"]
only_mutate = ["kerasattention/attend/*", "kerasattention/layers/*"]
do_not_mutate = ["*tensorflow*", "*jax*"] # on torch nothing of them runs
process_isolation = "forkserver" # torch does not survive a fork
use_git_change_detection = false
pytest_add_cli_args_test_selection = [$(printf '"%s", ' "${tests[@]}")]
[tool.pytest.ini_options]
pythonpath = [".", "tests/python"]
addopts = ["--import-mode=importlib"]
END

echo "mutants: writing them, and running the tests once to see which meets which"
# No mutant has this name, so that mutmut stops after the tests.
(cd "$folder" && "${mutmut[@]}" run no-such-mutant) >"$folder/prepare.log" 2>&1 || true
python tools/sample_mutants.py draw "$folder" "$count" "$seed" "$names" >"$folder/sample.txt"
echo "mutants: running $(wc -l <"$folder/sample.txt") of them"
(cd "$folder" && xargs "${mutmut[@]}" run --max-children 2 <sample.txt) >"$folder/run.log" 2>&1 || true
python tools/sample_mutants.py report "$folder"
