#!/usr/bin/env bash
# Mutation testing of the engine and the layers with mutmut, on torch: a sample of the mutants,
# drawn with a seed. Ends with the share killed and the names of the survivors.
#   tools/mutants.sh 300 1                     300 mutants, seed 1
#   tools/mutants.sh 100 1 'kerasattention.attend.mask.*'
#   MUTANT_TESTS="mask rules" tools/mutants.sh 100 1 'kerasattention.attend.mask.*'
#                                              with the tests of two files only
#   tools/mutants.sh show NAME                 the change that a mutant is
set -euo pipefail
cd "$(dirname "$0")/.."
. ./activate

folder=$PWD/.setup/mutants
python=$PWD/.venv/bin/python
sample=$PWD/tools/sample_mutants.py
export KERAS_BACKEND=torch OMP_NUM_THREADS=1 PYTHONPATH=
ulimit -v $((12 * 2**20)) # a mutant without a check of sizes would take all memory

if [ "${1:-}" = show ]; then
  cd "$folder"
  exec "$python" -m mutmut show "$2"
fi
count=${1:-300} seed=${2:-1} names=${3:-'*'}

mkdir -p "$folder"
# mutmut writes the mutants of the files that have changed.
cp -r --preserve=timestamps --update inst/python/kerasattention tests "$folder"
cat >"$folder/pyproject.toml" <<END
[tool.mutmut]
source_paths = ["kerasattention"]
only_mutate = ["kerasattention/attend/*", "kerasattention/layers/*"]
do_not_mutate = ["*tensorflow*", "*jax*"] # on torch nothing of them runs
use_git_change_detection = false
[tool.pytest.ini_options]
pythonpath = [".", "tests/python"]
addopts = ["--import-mode=importlib"]
END
cd "$folder"
echo "mutants: writing them"
"$python" "$sample" write
rm -f mutants/calls.json
cd mutants
"$python" "$sample" run "$count" "$seed" "$names"
