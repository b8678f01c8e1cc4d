"""Each option of the layers with heads on 4 of 8 devices: collectives, outputs and gradients.

All cases run in one process with 8 simulated devices; this one has a single device.
"""

import json
import os
import subprocess
import sys

import pytest

import kerasattention
from fresh import xla_flags

CASES = os.path.join(os.path.dirname(__file__), "sharded_options.py")

# All-reduces of the forward pass, where it is not one; and of a step of training, of which one
# adds up the gradients over the batch.
FORWARD = {"key_value_of": 2, "norm over the width": 3}
TRAIN = 6
TRAIN_OF = {"key_value_of": 8, "norm over the width": 9}


def run_cases(folder, names=()):
    package = os.path.dirname(os.path.dirname(kerasattention.__file__))
    environment = os.environ | {
        "KERAS_BACKEND": "jax",
        "KERAS_HOME": str(folder),
        "PYTHONPATH": os.pathsep.join([package, os.path.dirname(CASES)]),
        "XLA_FLAGS": xla_flags(8),
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [sys.executable, CASES, *names],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(map(json.loads, done.stdout.splitlines()))


def wrong(name, found):
    """What is not as it should be, as text."""
    if "error" in found:
        return found["error"]
    forward, train = FORWARD.get(name, 1), TRAIN_OF.get(name, TRAIN)
    is_right = (
        found["forward"] == {"all-reduce": forward}
        and found["train"].keys() == {"all-reduce"}
        and found["train"]["all-reduce"] <= train
        and found["output"] <= 1e-5
        and found["gradients"] <= 1e-4
    )
    return None if is_right else f"{name}: {found}"


@pytest.mark.nightly
def test_all_options_have_the_numbers_of_one_device_and_no_other_collectives(tmp_path):
    cases = run_cases(tmp_path)
    assert len(cases) > 30
    assert [text for name, found in cases.items() if (text := wrong(name, found))] == []
