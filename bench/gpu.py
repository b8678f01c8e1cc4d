"""The part on a GPU: torch and JAX, bfloat16, T to 32768; says so where there is none.

Each backend in a fresh process; a full run prints a table and writes bench/results/gpu.md.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from measure import interleaved, summary
from registry import KERAS, OURS

HERE = Path(__file__).parent
LENGTHS = (1024, 4096, 16384, 32768)
# Keras's layer holds T x T scores wherever its fused kernel does not take the call.
KERAS_LONGEST = {"": 32768, "window 256": 16384}
NO_GPU = "no GPU here"


def has_gpu(backend: str) -> bool:
    if backend == "torch":
        import torch

        return torch.cuda.is_available()
    import jax

    return any(device.platform == "gpu" for device in jax.devices())


def measure(backend: str) -> list[dict]:
    """Rows of the table, in a process that has loaded the backend."""
    from cases._layers import D, pair
    from runners import forward, gradient_step, tensor

    rows = []
    for length in LENGTHS:
        for what, make in (("forward", forward), ("gradient step", gradient_step)):
            for name, options in (("", {}), ("window 256", {"sliding_window": 256})):
                theirs, ours = pair(length, dtype="bfloat16", **options)
                x = tensor((1, length, D), dtype="bfloat16")
                runs = {OURS: make(ours, x, use_causal_mask=True)}
                if length <= KERAS_LONGEST[name]:
                    runs = {KERAS: make(theirs, x, use_causal_mask=True), **runs}
                runs = {label: waiting(backend, run) for label, run in runs.items()}
                times = interleaved(runs, 3.0, (5, 50))
                row = {"what": f"{what}, T = {length}" + (f", {name}" if name else "")}
                row |= {label: summary(times[label])["median"] for label in runs}
                rows.append(row)
                print("    " + describe(row), flush=True)
    return rows


def waiting(backend: str, run):
    """Kernels run on after a torch call returns."""
    if backend != "torch":
        return run
    import torch

    def run_and_wait():
        result = run()
        torch.cuda.synchronize()
        return result

    return run_and_wait


def describe(row: dict) -> str:
    parts = [f"{label} {row[label]:.2f} ms" for label in (KERAS, OURS) if label in row]
    if KERAS in row:
        parts.append(f"ratio {row[KERAS] / row[OURS]:.2f}")
    return f"{row['what']}: " + "; ".join(parts)


def device(backend: str) -> str:
    if backend == "torch":
        import torch

        return torch.cuda.get_device_name()
    import jax

    return next(d.device_kind for d in jax.devices() if d.platform == "gpu")


def markdown(results: dict[str, dict]) -> str:
    lines = ["# GPU: speed in bfloat16", "", "Made by `make bench`; medians in milliseconds.", ""]
    for backend, result in results.items():
        lines += [f"## {backend} on {result['device']}, {result['versions']}", ""]
        lines += [f"| | {KERAS} | {OURS} | ratio |", "| --- | --- | --- | --- |"]
        for row in result["rows"]:
            theirs = f"{row[KERAS]:.2f}" if KERAS in row else ""
            ratio = f"{row[KERAS] / row[OURS]:.2f}" if KERAS in row else ""
            lines.append(f"| {row['what']} | {theirs} | {row[OURS]:.2f} | {ratio} |")
        lines.append("")
    return "\n".join(lines)


def main() -> int:
    if len(sys.argv) > 1:
        backend = sys.argv[1]
        if not has_gpu(backend):
            print(NO_GPU)
            return 0
        import report

        result = {"device": device(backend), "rows": measure(backend)}
        print("\n" + json.dumps(result | report.circumstances(backend)))
        return 0
    results = {}
    for backend in ("torch", "jax"):
        print(f"GPU, {backend} ...", flush=True)
        environment = os.environ | {
            "KERAS_BACKEND": backend,
            "PYTHONPATH": os.pathsep.join(
                [str(HERE.parent / "inst" / "python"), os.environ.get("PYTHONPATH", "")]
            ),
        }
        done = subprocess.run(
            [sys.executable, __file__, backend], env=environment, stdout=subprocess.PIPE, text=True
        )
        last = (done.stdout.strip().splitlines() or [""])[-1]
        if done.returncode != 0:
            print(f"    failed with status {done.returncode}")
            return 1
        if last == NO_GPU:
            print(f"    {NO_GPU}")
            continue
        results[backend] = json.loads(last)
    if results:
        (HERE / "results" / "gpu.md").write_text(markdown(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
