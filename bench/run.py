"""Runs the benchmark: `make bench`, `make bench ARGS="--case forward-4096 --backend jax"`.

Every case runs in a fresh process per backend (memory: one for each figure). Results are kept in
bench/results/BACKEND.json, the tables and the plot are made from them; `--quick` only prints.
`--resume` goes on with a run that was interrupted.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import plot
import plot_decoding
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
    if options.resume:
        chosen = [(backend, case) for backend, case in chosen if not is_done(backend, case)]
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
    parser.add_argument(
        "--resume", action="store_true", help="leave out what has a result of today"
    )
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
    kept = kept_results(backend)
    kept[case.name] = result | report.circumstances(backend)
    text = json.dumps(kept, indent=1, sort_keys=True) + "\n"
    (RESULTS / f"{backend}.json").write_text(text)


def kept_results(backend: str) -> dict[str, dict]:
    path = RESULTS / f"{backend}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def is_done(backend: str, case: Case) -> bool:
    """Whether there is a result of today, of these versions and this machine."""
    result = kept_results(backend).get(case.name, {"error": "none"})
    now = report.circumstances(backend)
    return "error" not in result and all(result[key] == now[key] for key in now)


def write_reports(cases: dict[str, Case]) -> int:
    results = {backend: kept_results(backend) for backend in BACKENDS}
    results = {backend: kept for backend, kept in results.items() if kept}
    for backend, kept in results.items():
        (RESULTS / f"{backend}.md").write_text(report.markdown(cases, backend, kept))
    plot.draw(cases, results, RESULTS / "length.png")
    plot_decoding.draw(results, RESULTS / "decoding.png")
    print("Tables and plots are in bench/results.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
