"""What a benchmark case is, and where the cases are found: every file in `cases/`."""

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path

BACKENDS = ("tensorflow", "jax", "torch")

# Named so in every case that has them: the ratio is that of the first over the second.
KERAS, OURS = "Keras", "kerasattention"


@dataclasses.dataclass(frozen=True)
class Settings:
    """How thoroughly to measure."""

    seconds: float = 6.0
    rounds: tuple[int, int] = (5, 40)
    quick: bool = False

    @classmethod
    def brief(cls) -> "Settings":
        return cls(seconds=2.0, rounds=(3, 10), quick=True)


@dataclasses.dataclass(frozen=True)
class Floor:
    """The figure to reach: what is compared, which way is better, and the number."""

    of: str  # "ratio", "memory" or "share"
    least: float | None = None
    most: float | None = None

    def met(self, value: float) -> bool:
        if self.least is not None and value < self.least:
            return False
        return self.most is None or value <= self.most

    def __str__(self) -> str:
        return f">= {self.least:g}" if self.least is not None else f"<= {self.most:g}"


@dataclasses.dataclass(frozen=True)
class Case:
    """One line of the report.

    Attributes:
        name: What `--case` takes.
        title: What the table says.
        group: Which table it belongs to: "time", "fit", "memory", "limit", "peers", "curve", or
            one that a new file of cases brings along.
        measure: Runs in a fresh process with the backend loaded; returns a dictionary that can
            be written as JSON. "times" holds summaries by label, in the order of the columns;
            "ratio", "memory", "share" hold what a floor is compared with.
        backends: Where it can run.
        floors: The figure to reach by backend.
        parts: Labels to be run each in a fresh process of its own, as memory must be.
        timeout: Seconds after which a process is given up.
    """

    name: str
    title: str
    group: str
    measure: Callable
    backends: tuple[str, ...] = BACKENDS
    floors: dict[str, Floor] = dataclasses.field(default_factory=dict)
    parts: tuple[str, ...] = ()
    timeout: int = 300


def ratios(tensorflow: float, jax: float, torch: float) -> dict[str, Floor]:
    """How many times faster than the other at least, by backend."""
    least = {"tensorflow": tensorflow, "jax": jax, "torch": torch}
    return {backend: Floor("ratio", least=figure) for backend, figure in least.items()}


def all_cases() -> dict[str, Case]:
    """Every case by name, in the order of files and of their `CASES`."""
    found = {}
    for path in sorted((Path(__file__).parent / "cases").glob("*.py")):
        if path.stem.startswith("_"):
            continue
        for case in importlib.import_module(f"cases.{path.stem}").CASES:
            if case.name in found:
                raise ValueError(f"Two cases are called {case.name!r}.")
            found[case.name] = case
    return found
