"""Runs a sample of mutmut's mutants of two folders and reports what the tests made of it.

python tools/sample_mutants.py write                        the mutants, in the folder it is run in
python tools/sample_mutants.py run COUNT SEED PATTERN       share killed, the survivors

mutmut writes all mutants of a function beside it and calls the one that is asked for. Here all
tests are collected once, and each mutant runs in a fork of that process: the quickest of the tests
that call its function, until one fails.
"""

import inspect
import json
import os
import random
import re
import resource
import signal
import sys
import time
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from mutmut.mutation.trampoline import set_mutant_under_test
from mutmut.state import state

# Functions that do not run on torch, or only where a graph of another backend is traced.
OF_OTHER_BACKENDS = re.compile(
    r"_(jax|tensorflow)(_|$)|_inner_codes|_Drawsǁ|map_queries|map_tokens|broadcast_unknown_axes"
    r"|_to_int32|shar(ding|ing\.|ded)"
    r"|torch_parameters"  # its tests start other processes, which have no mutants
)
# Test files without a part in it: of whole models and their files, of decoding, of the fuzzers'
# yardstick, and those that read the sources, which the mutants change.
OTHERS = """
alike bridge checkpoint convert copies decode_trials decoding files generate_threads importance
imports interrupts kept_decoders_torch kept_files keras_int8_torch keras_names lora modules
optimize_torch packing products_torch prompts properties prune public_names published_models
rechecks reference repeats replace rollout sampling scores stale_decoders tape token_checks
trace_torch unknown_lengths weight_files
"""
# It compares sources.
DESELECTED = "test_the_two_classes_have_no_run_of_six_equal_lines"
# Seconds of tests that a mutant meets at most.
SECONDS = float(os.environ.get("MUTANT_SECONDS", "60"))
WORKERS = int(os.environ.get("WORKERS", "2"))
TESTS, CALLS, RESULTS = Path("tests/python"), Path("calls.json"), Path("results.jsonl")
FAILED = Path("failed.txt")


def write() -> None:
    """Copies the sources and the tests to `mutants/`, and writes the mutants there."""
    from mutmut import __main__ as mutmut

    mutmut.copy_src_dir()
    mutmut.copy_also_copy_files()
    mutmut.create_mutants(WORKERS)


def test_files() -> list[str]:
    if only := os.environ.get("MUTANT_TESTS"):
        return [f"{TESTS}/test_{name}.py" for name in only.split()]
    names = {path.stem.removeprefix("test_") for path in TESTS.glob("test_*.py")}
    if unknown := set(OTHERS.split()) - names:
        sys.exit(f"No such test files: {sorted(unknown)}")
    return [
        f"{TESTS}/test_{name}.py"
        for name in sorted(names - set(OTHERS.split()))
        if not name.endswith(("_tensorflow", "_jax"))
    ]


def own_tests(function: str) -> set[str]:
    """Names of the test files of a function's module."""
    *_, folder, module, _ = re.split(
        r"[.ǁ]", function.partition(".xǁ")[0].partition(".x_")[0] + ".x"
    )
    names = {module, f"{folder}_{module}", f"{module}_torch"}
    return {f"test_{name}" for name in names}


def draw(count: int, seed: int, pattern: str) -> list[str]:
    """Names of mutants, such as `kerasattention.attend.mask.x__positions__mutmut_3`."""
    names: list[str] = []
    for path in Path().glob("kerasattention/**/*.py.meta"):
        names += json.loads(path.read_text())["exit_code_by_key"]
    names = sorted(
        name
        for name in names
        if any(fnmatch(name, part) for part in pattern.split())
        and not OF_OTHER_BACKENDS.search(name)
    )
    return random.Random(seed).sample(names, min(count, len(names)))


class Mutants:
    """A plugin of pytest: in place of the tests it runs them for each mutant."""

    def __init__(self, count: int, seed: int, pattern: str) -> None:
        self.names = draw(count, seed, pattern)
        self.failed = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.failed = self.failed or report.failed

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items if DESELECTED not in item.nodeid}
        if not CALLS.exists():
            in_fork(lambda: self.record_calls(items))
        calls = json.loads(CALLS.read_text())
        RESULTS.unlink(missing_ok=True)
        workers = [
            fork(lambda share=self.names[i::WORKERS]: self.run(share, calls, items))
            for i in range(WORKERS)
        ]
        for worker in workers:
            os.waitpid(worker, 0)
        return True

    def record_calls(self, items: dict[str, pytest.Item]) -> None:
        """Writes which functions each test calls, and how long it takes."""
        set_mutant_under_test("stats")
        calls, failed = {}, []
        for name, item in items.items():
            state()._stats.clear()
            self.failed, start = False, time.monotonic()
            self.run_test(item, None)
            seconds = time.monotonic() - start
            if self.failed:
                failed.append(name)
            else:
                calls[name] = {"seconds": seconds, "functions": sorted(state()._stats)}
        FAILED.write_text("".join(f"fails without a mutant, left out: {name}\n" for name in failed))
        CALLS.write_text(json.dumps(calls))

    def run(self, names: list[str], calls: dict[str, Any], items: dict[str, pytest.Item]) -> None:
        for name in names:
            function = name.rpartition("__mutmut_")[0]
            tests = [t for t in items if function in calls.get(t, {"functions": ()})["functions"]]
            # Those of the same module first: a limit of time leaves out others.
            own = own_tests(function)
            tests.sort(
                key=lambda test: (
                    Path(test.partition("::")[0]).stem not in own,
                    calls[test]["seconds"],
                )
            )
            chosen, total = [], 0.0
            for test in tests:
                total += calls[test]["seconds"]
                if chosen and total > SECONDS:
                    break
                chosen.append(items[test])
            status = self.run_mutant(name, chosen, min(total, SECONDS)) if chosen else "no tests"
            with RESULTS.open("a") as file:
                file.write(json.dumps({"name": name, "status": status}) + "\n")

    def run_mutant(self, name: str, tests: list[pytest.Item], seconds: float) -> str:
        def run() -> None:
            limit = int(30 + 10 * seconds)
            resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 1))
            signal.alarm(10 * limit)
            set_mutant_under_test(name)
            self.failed = False
            for test, following in zip(tests, [*tests[1:], None], strict=True):
                self.run_test(test, following)
                if self.failed:
                    os._exit(1)

        status = in_fork(run)
        if os.WIFSIGNALED(status):
            signals = (signal.SIGXCPU, signal.SIGALRM)
            return "timeout" if os.WTERMSIG(status) in signals else "crashed"
        return "killed" if os.WEXITSTATUS(status) else "survived"

    @staticmethod
    def run_test(item: pytest.Item, following: pytest.Item | None) -> None:
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)


def read_through_wrappers() -> None:
    """Has Keras find the arguments of a layer whose `__init__` has mutants.

    It asks for the signature, which follows a wrapper to the function, and for the argument
    specification, which does not, and fails where they differ.
    """
    of_function = inspect.getfullargspec
    inspect.getfullargspec = lambda func: of_function(inspect.unwrap(func))


def fork(function: Any) -> int:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            function()
            status = 0
        finally:
            os._exit(status)
    return pid


def in_fork(function: Any) -> int:
    return os.waitpid(fork(function), 0)[1]


def report(names: list[str]) -> None:
    found = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    statuses = {result["name"]: result["status"] for result in found}
    if missing := set(names) - statuses.keys():
        sys.exit(f"{len(missing)} mutants did not run.")
    print(FAILED.read_text(), end="")
    alive = {"survived", "no tests"}
    for name, status in sorted(statuses.items()):
        if status != "killed":
            print(f"{status:9} {name}")
    modules = Counter(name.rsplit(".", 1)[0] for name in statuses)
    killed = Counter(n.rsplit(".", 1)[0] for n, status in statuses.items() if status not in alive)
    for module, number in sorted(modules.items()):
        print(f"{killed[module]:4} of {number:4} killed  {module}")
    share = killed.total() / len(statuses)
    print(f"{killed.total():4} of {len(statuses):4} killed  ({share:.1%})")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["write"]:
            write()
        case ["run", count, seed, pattern]:
            read_through_wrappers()
            mutants = Mutants(int(count), int(seed), pattern)
            options = [
                "-q",
                "--rootdir=.",
                "--tb=no",
                "-p",
                "no:cacheprovider",
                "-p",
                "no:faulthandler",
            ]
            pytest.main([*options, *test_files()], plugins=[mutants])
            report(mutants.names)
        case _:
            sys.exit(__doc__)
