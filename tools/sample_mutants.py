"""Draws a sample of mutmut's mutants and reports what the tests made of it.

python tools/sample_mutants.py draw FOLDER COUNT SEED PATTERN    names, one a line
python tools/sample_mutants.py report FOLDER                     share killed, the survivors
"""

import json
import random
import sys
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path

from mutmut.stats import status_by_exit_code

KILLED = {"killed", "timeout", "segfault", "suspicious"}


def exit_codes(folder: Path) -> dict[str, int | None]:
    """Exit code of pytest for each mutant, None where it has not run."""
    codes = {}
    for path in sorted(folder.glob("mutants/**/*.py.meta")):
        codes |= json.loads(path.read_text())["exit_code_by_key"]
    return codes


def draw(folder: Path, count: int, seed: int, pattern: str) -> None:
    names = sorted(name for name in exit_codes(folder) if fnmatch(name, pattern))
    print(*random.Random(seed).sample(names, min(count, len(names))), sep="\n")


def report(folder: Path) -> None:
    sample = (folder / "sample.txt").read_text().split()
    codes = exit_codes(folder)
    statuses = {name: status_by_exit_code[codes[name]] for name in sample}
    if not_run := [name for name, status in statuses.items() if status == "not checked"]:
        sys.exit(f"{len(not_run)} mutants did not run: see {folder / 'run.log'}")
    for name, status in sorted(statuses.items()):
        if status not in KILLED:
            print(f"{status:9} {name}")
    by_module = Counter(name.rsplit(".", 1)[0] for name in sample)
    killed = Counter(
        name.rsplit(".", 1)[0] for name, status in statuses.items() if status in KILLED
    )
    for module, number in sorted(by_module.items()):
        print(f"{killed[module]:4} of {number:4} killed  {module}")
    share = sum(killed.values()) / len(sample)
    print(f"{sum(killed.values()):4} of {len(sample):4} killed  ({share:.0%})")


if __name__ == "__main__":
    command, folder, *arguments = sys.argv[1:]
    if command == "draw":
        count, seed, pattern = arguments
        draw(Path(folder), int(count), int(seed), pattern)
    else:
        report(Path(folder))
