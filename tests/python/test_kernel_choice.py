"""Golden test: the kernel and the blocks that each backend picks, for every kind of problem.

A change of structure leaves the files under `golden/` alone. A change of choice is meant: run
`python tests/python/test_kernel_choice.py` on each backend and look at the difference.
"""

import json
from pathlib import Path

import numpy as np

from backends import BACKEND
from plans import describe
from problems import PROBLEMS, problem

GOLDEN = Path(__file__).parent / "golden" / f"kernels-{BACKEND}.json"
LENGTHS = {"T 13": (13, 17), "T 521": (521, 521), "T 1031": (1031, 1031), "T 8209": (8209, 8209)}
LENGTHS |= {"T 1, S 4099": (1, 4099), "T 1031, S 2053": (1031, 2053)}
# The explicit arrays of the long problems have (T, S) numbers.
LARGEST_ARRAY = 1031 * 2053
DTYPES = ("float16", "bfloat16")


def _kinds(length, keys):
    """One problem of each kind, without numbers: only shapes decide."""
    padding = np.arange(keys) < np.array([[keys], [keys // 2]])
    segments = 1 + np.arange(keys)[None] * np.ones((2, 1), int) // 100
    kinds = {
        "nothing hidden": {},
        "causal": {"mask_fields": {"causal": True}},
        "offset": {"mask_fields": {"causal": True, "offset": 3}},
        "window 64": {"mask_fields": {"window": 64}},
        "window 64, causal": {"mask_fields": {"window": 64, "causal": True}},
        "window 256, causal": {"mask_fields": {"window": 256, "causal": True}},
        "padding": {"mask_fields": {"key_mask": padding}},
        "padding, causal": {"mask_fields": {"key_mask": padding, "causal": True}},
        "padding, window 256, causal": {
            "mask_fields": {"key_mask": padding, "window": 256, "causal": True}
        },
        "positions": {"mask_fields": {"causal": True, "query_positions": np.arange(length)}},
        "segments": {
            "mask_fields": {"query_segments": segments[:, :length], "key_segments": segments}
        },
        "cap": {"cap": 2.0},
        "sink": {"sink": np.zeros(15)},
        "dropout": {"rate": 0.1},
    }
    if length * keys <= LARGEST_ARRAY:
        kinds |= {
            "mask (T, S)": {"mask_fields": {"mask": np.ones((length, keys), bool)}},
            "bias (T, S)": {"bias": np.zeros((length, keys))},
        }
    return {name: problem(T=length, S=keys, **options) for name, options in kinds.items()}


def sections():
    """Pairs of a section's name and its texts."""
    yield "problems", {name: describe(given) for name, given in PROBLEMS.items()}
    for name, (length, keys) in LENGTHS.items():
        yield name, {kind: describe(x) for kind, x in _kinds(length, keys).items()}
    kinds = _kinds(*LENGTHS["T 1031"])
    for dtype in DTYPES:
        yield f"T 1031, {dtype}", {kind: describe(x, dtype) for kind, x in kinds.items()}
    if BACKEND == "tensorflow":
        yield "T unknown", {k: describe(x, unknown_length=True) for k, x in kinds.items()}


def test_kernels_and_blocks_are_those_of_the_golden_file():
    expected = json.loads(GOLDEN.read_text())
    found = dict(sections())
    assert list(found) == list(expected)
    for name, texts in found.items():
        assert texts == expected[name], name


if __name__ == "__main__":
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(dict(sections()), indent=1) + "\n")
