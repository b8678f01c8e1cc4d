"""Counts the collective operations of a compiled program, those of its loops included."""

import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

OPERATIONS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .* )?\{")
_INSTRUCTION = re.compile(r"\s*(?:ROOT )?%?\S+ = (?:\(.*?\)|\S+) ([\w\-]+)\(")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


class Collective(NamedTuple):
    """A collective operation, and whether it stands in a loop."""

    operation: str
    in_loop: bool


def count_collectives(program: str) -> Counter[Collective]:
    """The collective operations in the text of a compiled program (HLO)."""
    lines = _computations(program)
    return Counter(_collectives_of("ENTRY", lines, in_loop=False))


def _computations(program: str) -> dict[str, list[str]]:
    """The lines of each computation by name, those of the program itself as "ENTRY"."""
    found: dict[str, list[str]] = {}
    current: list[str] = []
    for line in program.splitlines():
        match = _COMPUTATION.match(line)
        if match is not None:
            current = found[match[2]] = []
            if match[1]:
                found["ENTRY"] = current
        else:
            # Indices within tuples of shapes look like the end of the shape.
            current.append(re.sub(r"/\*index=\d+\*/", "", line))
    return found


def _collectives_of(name: str, lines: dict[str, list[str]], in_loop: bool) -> Iterator[Collective]:
    for line in lines.get(name, ()):
        match = _INSTRUCTION.match(line)
        if match is None:
            continue
        operation = match[1].removesuffix("-start")
        if operation in OPERATIONS:  # an asynchronous one ends with "-done", and counts once
            yield Collective(operation, in_loop)
            continue
        called = _CALLED.findall(line)
        for branches in _BRANCHES.findall(line):
            called += [branch.strip().lstrip("%") for branch in branches.split(",")]
        for computation in called:
            yield from _collectives_of(computation, lines, in_loop or operation == "while")


def describe(counts: Counter[Collective], blocks: int) -> str:
    """The operations of one of `blocks` equal blocks, as a phrase."""
    parts = []
    for (operation, in_loop), count in sorted(counts.items()):
        number = count / blocks
        shown = f"{number:g} {operation}{'' if number == 1 else 's'}"
        parts.append(shown + (" in each step of a loop" if in_loop else ""))
    return " and ".join(parts) if parts else "no collective operation"
