"""What the fuzzers share: arguments, the loop with its progress, and a line for each finding."""

import argparse
import collections
import os
import pathlib
import sys
import time
import traceback
from xml.etree import ElementTree

CPU = 0.0
HERE = pathlib.Path(__file__).resolve().parent
BACKENDS = ("torch", "tensorflow", "jax")
# Classes of cases that may be left out while they are being mended.
CLASSES = {
    "float64": "layers and calls in float64",
    "norm64": "layers in float64 with qk_norm: Keras's RMSNormalization computes in float32",
    "table64": "layers in float64 with a RelativePosition",
    "second": "second derivatives",
    "empty": "batches of 0",
    "nan": "NaN and infinity in masked keys and values",
    "nan-inputs": "the same in inputs of layers, which project them",
    "copied": "models with both Keras's attention and Lambdas or layers of one's own",
    "hostile": "models whose layers look at other tokens in ways that a trial may miss",
}


class Finding(Exception):  # noqa: N818 - it is not an error of the fuzzer
    """A case that is wrong; the configuration is printed with it."""

    def __init__(self, what, config):
        super().__init__(what)
        self.config = config


def arguments(description, seed=1):
    """The command line, with the backend set and the tests' modules on the path."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", choices=BACKENDS, default=os.environ.get("KERAS_BACKEND"))
    parser.add_argument("--seed", type=int, default=seed, help="of all cases")
    parser.add_argument("--seconds", type=float, help="for how long at most; 60 without --cases")
    parser.add_argument("--cases", type=int, help="how many at most")
    parser.add_argument("--draws", type=int, help="layers only: inputs of each configuration")
    parser.add_argument("--first", type=int, default=0, help="the number of the first case")
    parser.add_argument("--case", help="SEED:INDEX: this case only, with everything about it")
    parser.add_argument("--findings", type=int, default=20, help="stop after so many")
    parser.add_argument("--report", help="JUnit XML to write")
    parser.add_argument(
        "--without",
        default="",
        help="classes to leave out, with commas: "
        + "; ".join(f"{name} ({what})" for name, what in CLASSES.items()),
    )
    found = parser.parse_args()
    found.without = tuple(name for name in found.without.split(",") if name)
    unknown = set(found.without) - set(CLASSES)
    if unknown:
        parser.error(f"--without: {sorted(unknown)} are none of {sorted(CLASSES)}")
    if found.backend not in BACKENDS:
        parser.error("--backend is required")
    if found.case:
        seed, index = found.case.split(":")
        found.seed, found.first, found.cases = int(seed), int(index), 1
    if found.seconds is None:
        found.seconds = 60.0 if found.cases is None else float("inf")
    os.environ["KERAS_BACKEND"] = found.backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    root = HERE.parent.parent
    for folder in (HERE.parent / "python", root / "inst" / "python"):
        sys.path.insert(0, str(folder))
    return found


def run(name, cases, arguments):
    """Runs cases until time or their number is up. Returns the exit status."""
    import kerasattention  # noqa: F401 - before the clock starts

    global CPU
    CPU = time.process_time()
    refusals, findings, done = collections.Counter(), [], 0
    started = told = time.monotonic()
    index = arguments.first
    while True:
        now = time.monotonic()
        if done == arguments.cases or now - started >= arguments.seconds:
            break
        if now - told > 30:
            told = now
            progress(name, arguments, done, now - started, refusals, findings)
        try:
            refusal = cases.run(index)
            if refusal is not None:
                refusals[refusal] += 1
                if arguments.case:
                    print(f"refused: {refusal}")
        except Finding as finding:
            findings.append(report(name, arguments, index, str(finding), finding.config))
        except Exception as error:
            if arguments.case:
                traceback.print_exc()
            where = traceback.extract_tb(error.__traceback__)[-1]
            what = f"{type(error).__name__}: {str(error)[:300]} ({where.filename}:{where.lineno})"
            findings.append(report(name, arguments, index, what, cases.config(index)))
        done += 1
        index += 1
        if len(findings) >= arguments.findings:
            print(f"stopped after {len(findings)} findings")
            break
    progress(name, arguments, done, time.monotonic() - started, refusals, findings)
    for refusal, count in refusals.most_common():
        print(f"  refused {count:5}: {refusal}")
    if arguments.report:
        write_report(name, arguments, done, findings)
    if not done:
        print("no case was run")
    return 1 if findings or not done else 0


def report(name, arguments, index, what, config):
    """Prints a finding: one line that runs it again, then what it is."""
    without = f" --without {','.join(arguments.without)}" if arguments.without else ""
    draws = f" --draws {arguments.draws}" if arguments.draws else ""
    line = (
        f"python tests/fuzz/{name}.py --backend {arguments.backend} "
        f"--case {arguments.seed}:{index}{draws}{without}"
    )
    print(f"FOUND {line}\n  {what}\n  {config}", flush=True)
    return line, what


def progress(name, arguments, done, seconds, refusals, findings):
    rate = done / max(time.process_time() - CPU, 1e-9)
    print(
        f"{name} on {arguments.backend}, seed {arguments.seed}: {done} cases in {seconds:.0f} s "
        f"({rate:.1f} a CPU second), {sum(refusals.values())} refused, "
        f"{len(findings)} findings",
        flush=True,
    )


def write_report(name, arguments, done, findings):
    """A JUnit report: all cases are one test, and each finding is one that failed."""
    report = pathlib.Path(arguments.report)
    # What another fuzzer wrote stays.
    if report.exists():
        suite = ElementTree.parse(report).getroot()
    else:
        suite = ElementTree.Element("testsuite", name=f"fuzz-{arguments.backend}")
    if done and not findings:
        ElementTree.SubElement(suite, "testcase", name=f"{done} {name}", classname=name)
    for line, what in findings:
        case = ElementTree.SubElement(suite, "testcase", name=line, classname=name)
        ElementTree.SubElement(case, "failure", message=what)
    ElementTree.ElementTree(suite).write(report)
