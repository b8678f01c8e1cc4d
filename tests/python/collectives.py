"""The collectives of a compiled program of XLA, and the trip counts of its loops.

`while` bodies are followed: a search through the text counts a collective in a loop once, though
it runs once for every trip.
"""

import collections
import re

COLLECTIVES = (
    *("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"),
    *("collective-broadcast", "ragged-all-to-all"),
)
# Computations that these operations apply are of numbers, not of devices.
_APPLIES_NUMBERS = {
    *("fusion", "reduce", "all-reduce", "scatter", "sort", "map", "reduce-window"),
    *("select-and-scatter", "reduce-scatter"),
}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .* )?\{")
_OPERATION = re.compile(r"\s*(?:ROOT )?%?\S+ = (?:\(?[^=]*?\)?) ([\w\-]+)\(")
_CALLED = re.compile(
    r"(?:calls|to_apply|called_computations|true_computation|false_computation)=\{?%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


def _computations(text):
    """The lines of each computation; that of the program is named None."""
    found, lines = {}, []
    for line in text.splitlines():
        match = None if line.startswith(" ") else _COMPUTATION.match(line)
        if match:
            lines = found[match.group(2)] = []
            if match.group(1):
                found[None] = lines
        else:
            lines.append(re.sub(r"/\*index=\d+\*/", "", line))
    return found


def _operations(computations, name=None, depth=0):
    """(operation, its line, depth of loops around it) of all that runs."""
    for line in computations[name]:
        match = _OPERATION.match(line)
        if not match:
            continue
        operation = match.group(1)
        yield operation, line, depth
        if operation == "while":
            for part in ("body", "condition"):
                called = re.search(rf"{part}=%?([\w.\-]+)", line).group(1)
                yield from _operations(computations, called, depth + 1)
        elif operation not in _APPLIES_NUMBERS:
            called = _CALLED.findall(line)
            for names in _BRANCHES.findall(line):
                called += re.findall(r"[\w.\-]+", names)
            for other in called:
                yield from _operations(computations, other, depth)


def count_collectives(text):
    """How often each collective stands in a program; "@loop" after those within loops."""
    counts = collections.Counter()
    for operation, _, depth in _operations(_computations(text)):
        base = operation.removesuffix("-start")
        if base in COLLECTIVES:
            counts[base + ("@loop" if depth else "")] += 1
    return dict(counts)


def trip_counts(text):
    """(trips or None, depth) of every loop."""
    loops = []
    for operation, line, depth in _operations(_computations(text)):
        if operation == "while":
            known = re.search(r'known_trip_count":\s*\{"n":"(\d+)"', line)
            loops.append((int(known.group(1)) if known else None, depth))
    return loops
