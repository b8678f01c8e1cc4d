"""Calls made a thousand times, bit for bit the same; and with one thread and two, to rounding.

    python tests/fuzz/repeats.py --backend torch --cases 1000

Ends with status 1 where a repeat differs, or where the number of threads changes a result by more
than rounding does.
"""

import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import session  # sets the backend and the paths; before Keras is imported

if __name__ == "__main__":
    ARGUMENTS = session.arguments(__doc__)

# Sums in another order: a few roundings of float32 of the largest number.
ROUNDING = 64 * 2.0**-23
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")


def changed(name, count):
    """How many of the repeats differ from the first call."""
    from repeated import repeated

    call = repeated(name)
    first = call()
    return sum(
        any((again[which] != x).any() for which, x in first.items())
        for again in (call() for _ in range(count - 1))
    )


def save(path):
    """What all calls give, for another process to compare with."""
    from repeated import REPEATED, repeated

    found = {f"{n}/{w}": x for n in REPEATED for w, x in repeated(n)().items()}
    np.savez(path, **found)


def with_threads(backend, count, path):
    """The same in a fresh process with so many threads on as many cores."""
    cores = sorted(os.sched_getaffinity(0))[:count]
    environment = os.environ | dict.fromkeys(THREADS, str(count)) | {"SAVE_TO": str(path)}
    command = [sys.executable, __file__, "--backend", backend]
    # XLA and torch count the cores that the process may use.
    subprocess.run(
        command, check=True, env=environment, preexec_fn=lambda: os.sched_setaffinity(0, cores)
    )
    return dict(np.load(path))


def main():
    if "SAVE_TO" in os.environ:
        save(os.environ["SAVE_TO"])
        return 0
    from repeated import REPEATED

    status = 0
    for name in REPEATED:
        count = changed(name, ARGUMENTS.cases or 1000)
        print(f"repeats on {ARGUMENTS.backend}, {name}: {count} differ", flush=True)
        status |= count > 0
    with tempfile.TemporaryDirectory() as folder:
        paths = [pathlib.Path(folder) / f"{count}.npz" for count in (1, 2)]
        one, two = (with_threads(ARGUMENTS.backend, i + 1, path) for i, path in enumerate(paths))
    for name, x in one.items():
        error, allowed = abs(x - two[name]).max(), ROUNDING * abs(x).max()
        status |= not error <= allowed
        verdict = "" if error <= allowed else " TOO MUCH"
        print(f"1 and 2 threads on {ARGUMENTS.backend}, {name}: {error:.2g}{verdict}", flush=True)
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
