"""Runs the benchmark: `make bench`, `make bench ARGS="--case forward-4096 --backend jax"`.

Every case runs in a fresh process per backend (memory: one for each figure). Results are kept in
bench/results/BACKEND.json, the tables and the plot are made from them; `--quick` only prints.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import plot
import report
from registry import BACKENDS, Case, all_cases

HERE = Path(__file__).parent
RESULTS = HERE / "results"


def main() -> int:
    cases = all_cases()
    options = parse(cases)
    if options.list:
        for case in cases.values():
            print(f"{case.name:32} {case.title} ({', '.join(case.backends)})")
        return 0
    if options.report:
        return write_reports(cases)
    chosen = [
        (backend, case)
        for backend in options.backend or BACKENDS
        for case in cases.values()
        if backend in case.backends and (not options.case or case.name in options.case)
    ]
    failed = 0
    for number, (backend, case) in enumerate(chosen, 1):
        started = time.perf_counter()
        print(f"[{number}/{len(chosen)}] {backend}: {case.title} ...", flush=True)
        result = run_case(case, backend, options.quick)
        failed += "error" in result
        spent = time.perf_counter() - started
        print(f"    {report.one_line(case, backend, result)}  ({spent:.0f} s)", flush=True)
        if not options.quick:
            keep(backend, case, result)
    if not options.quick:
        write_reports(cases)
    if options.gpu or not options.case:
        subprocess.run([sys.executable, HERE / "gpu.py"], check=True)
    return 1 if failed else 0


def parse(cases: dict[str, Case]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--case", action="append", choices=list(cases), metavar="NAME")
    parser.add_argument("--backend", action="append", choices=BACKENDS)
    parser.add_argument("--quick", action="store_true", help="few rounds, nothing is written")
    parser.add_argument("--list", action="store_true", help="show the names of the cases")
    parser.add_argument("--gpu", action="store_true", help="the part on a GPU too")
    parser.add_argument("--report", action="store_true", help="write tables and plot again")
    return parser.parse_args()


def run_case(case: Case, backend: str, quick: bool) -> dict:
    """The result of one case; of all its parts, joined."""
    if not case.parts:
        return run_process(case, backend, "", quick)
    joined: dict = {"times": {}, "memories": {}}
    for part in case.parts:
        result = run_process(case, backend, part, quick)
        if "error" in result:
            joined["error"] = f"{part}: {result['error']}"
            continue
        joined["times"] |= result["times"]
        joined["memories"][part] = joined["memory"] = result["memory"]
    return joined


def run_process(case: Case, backend: str, part: str, quick: bool) -> dict:
    command = [sys.executable, str(HERE / "worker.py"), case.name, part, "quick" if quick else ""]
    paths = [str(HERE.parent / "inst" / "python"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "KERAS_BACKEND": backend,
        "PYTHONPATH": os.pathsep.join(p for p in paths if p),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=case.timeout
        )
    except subprocess.TimeoutExpired:
        return {"error": f"did not finish in {case.timeout} s"}
    if done.returncode != 0:
        print(done.stderr[-2000:], file=sys.stderr)
        last = done.stderr.strip().splitlines()[-1:] or [f"status {done.returncode}"]
        return {"error": last[0]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def keep(backend: str, case: Case, result: dict) -> None:
    """Puts one result among those kept, with its date and versions."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{backend}.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    kept[case.name] = result | report.circumstances(backend)
    path.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")


def write_reports(cases: dict[str, Case]) -> int:
    results = {}
    for backend in BACKENDS:
        path = RESULTS / f"{backend}.json"
        if path.exists():
            results[backend] = json.loads(path.read_text())
    for backend, kept in results.items():
        (RESULTS / f"{backend}.md").write_text(report.markdown(cases, backend, kept))
    plot.draw(cases, results, RESULTS / "length.png")
    print("Tables and plot are in bench/results.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
