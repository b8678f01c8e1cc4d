"""Time and memory of this process: interleaved timings, memory above idle."""

import gc
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from registry import OURS, Settings

Run = Callable[[], object]


def interleaved(runs: dict[str, Run], seconds: float, rounds: tuple[int, int]) -> dict[str, list]:
    """Times each of the runs in turn, round after round, so that drift hits all alike.

    Args:
        runs: Functions by label; each returns when its result is there.
        seconds: About how long to go on, all rounds together.
        rounds: The fewest and the most rounds.

    Returns:
        Seconds of each round by label. Two rounds before them (compilation, caches) count nothing,
        nor does the first of two calls in each turn.
    """
    for _ in range(2):
        for run in runs.values():
            run()
    gc.collect()
    times = {label: [] for label in runs}
    started = time.perf_counter()
    fewest, most = rounds
    for number in range(most):
        if number >= fewest and time.perf_counter() - started > seconds:
            break
        for label, run in runs.items():
            # Nobody pays for the memory that the other one has given back or left in the cache:
            # people run one of them, again and again.
            run()
            before = time.perf_counter()
            run()
            times[label].append(time.perf_counter() - before)
    return times


def summary(times: list[float]) -> dict:
    """Median and the quartiles in milliseconds, and the number of rounds."""
    ordered = sorted(1000 * x for x in times)
    return {
        "median": statistics.median(ordered),
        "low": ordered[len(ordered) // 4],
        "high": ordered[(3 * len(ordered)) // 4],
        "rounds": len(ordered),
    }


def compare(runs: dict[str, Run], settings: Settings, difference: float) -> dict:
    """Medians of all, and the ratio of the first that is not ours over ours."""
    times = {
        label: summary(seconds)
        for label, seconds in interleaved(runs, settings.seconds, settings.rounds).items()
    }
    other = next(label for label in times if label != OURS)
    return {
        "times": times,
        "ratio": times[other]["median"] / times[OURS]["median"],
        "difference": difference,
    }


class MemoryAboveIdle:
    """Peak resident memory of the process above what it held when this was made."""

    def __init__(self) -> None:
        gc.collect()
        # Linux can start the peak afresh; elsewhere it may be that of an import.
        reset = Path("/proc/self/clear_refs")
        if reset.exists():
            reset.write_text("5")
        self.idle = self._now()

    def peak(self) -> float:
        """GB (10^9 bytes) above idle."""
        return max(0.0, (self._peak() - self.idle) / 1e9)

    @staticmethod
    def _status(field: str) -> int | None:
        status = Path("/proc/self/status")
        if not status.exists():
            return None
        for line in status.read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
        return None

    def _now(self) -> int:
        now = self._status("VmRSS")
        return self._peak() if now is None else now

    def _peak(self) -> int:
        peak = self._status("VmHWM")
        if peak is not None:
            return peak
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def timed(run: Run, rounds: int) -> list[float]:
    """Seconds of each of some rounds after a first one that counts nothing."""
    run()
    times = []
    for _ in range(rounds):
        before = time.perf_counter()
        run()
        times.append(time.perf_counter() - before)
    return times


def run_r(script: str, rounds: int) -> dict:
    """What a script of this folder prints as its last line, which is JSON."""
    command = ["Rscript", str(Path(__file__).parent / script), str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return json.loads(done.stdout.strip().splitlines()[-1])
