"""Print a table of the suites that tools/test.sh ran and one line of counts for all.

Exits with 1 if a suite failed: by its own exit status, by a failed test, by having run
no test at all, or by skipping every one.
"""

import sys
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree


class Result(NamedTuple):
    passed: int
    failed: int
    skipped: int
    seconds: int
    why: str  # why the suite failed; empty if it did not


def counts(report: Path) -> tuple[int, int, int]:
    """Passed, failed and skipped tests of a JUnit report."""
    passed = failed = skipped = 0
    for case in ElementTree.parse(report).iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            failed += 1
        elif case.find("skipped") is not None:
            skipped += 1
        else:
            passed += 1
    return passed, failed, skipped


def read(folder: Path, suite: str) -> Result:
    status, seconds = map(int, (folder / f"{suite}.status").read_text().split())
    try:
        passed, failed, skipped = counts(folder / f"{suite}.xml")
    except (FileNotFoundError, ElementTree.ParseError):
        return Result(0, 1, 0, seconds, f"it did not start (exit status {status})")
    if failed:
        why = "tests failed"
    elif status:
        why = f"exit status {status}"
    elif not passed:
        why = "every test was skipped" if skipped else "no test was found"
    else:
        why = ""
    # A suite that failed as a whole counts as one failure, so that the sum shows it.
    return Result(passed, max(failed, bool(why)), skipped, seconds, why)


def main() -> int:
    folder, seconds, suites = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    results = {suite: read(folder, suite) for suite in suites}

    width = max(map(len, suites))
    print(f"\n{'suite':<{width}}  passed  failed  skipped  seconds")
    for suite, result in results.items():
        print(
            f"{suite:<{width}}  {result.passed:6}  {result.failed:6}  {result.skipped:7}"
            f"  {result.seconds:7}  {result.why}"
        )
    passed, failed, skipped = (sum(result[i] for result in results.values()) for i in range(3))
    print(f"\n{passed} passed, {failed} failed, {skipped} skipped in {seconds} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
