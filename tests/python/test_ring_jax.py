"""Ring attention: sequences that the devices of a `keras.distribution` share.

All cases run in one process with 8 simulated devices; this one has a single device.
"""

import json
import os
import subprocess
import sys

import pytest

import kerasattention
from fresh import xla_flags

CASES = os.path.join(os.path.dirname(__file__), "ring_cases.py")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each case found, by group and name."""
    package = os.path.dirname(os.path.dirname(kerasattention.__file__))
    environment = os.environ | {
        "KERAS_BACKEND": "jax",
        "KERAS_HOME": str(tmp_path_factory.mktemp("keras")),
        "PYTHONPATH": os.pathsep.join([package, os.path.dirname(CASES)]),
        "XLA_FLAGS": xla_flags(8),
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [sys.executable, CASES], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    cases = {(group, name): x for group, name, x in map(json.loads, done.stdout.splitlines())}
    errors = {name: x["error"] for name, x in cases.items() if "error" in x}
    assert not errors, "\n".join(f"{name}: {text}" for name, text in errors.items())
    return cases


ATTENDED = [
    *("causal 1x8", "full 2x4, sink, cap", "window 1x8, dropout", "both sides 1x8, bfloat16"),
    *("padding 2x2x2, alibi, dropout, sink", "segments 1x4x2, relative", "positions 2x4, alibi"),
    *("rules 2x4", "spans 4x2", "tiles 4x2", "accelerator 1x8"),
]


@pytest.mark.parametrize("name", ATTENDED)
def test_outputs_and_gradients_are_those_of_one_device(found, name):
    of_case = found["attend", name]
    assert {"query", "key", "value", "output"} <= of_case.keys()
    limit = 1e-2 if "bfloat16" in name else 5e-6
    assert max(of_case.values()) <= limit, of_case


def test_a_model_is_trained_as_on_one_device(found):
    of_case = found["train", "all 2x2x2"]
    assert len(of_case) > 10
    assert max(of_case.values()) <= 1e-5, of_case


def test_keys_and_values_travel_once_round_the_devices(found):
    of_case = found["count", "causal 1x8"]
    # Of K and V, in a loop of 7; in the backward pass also their gradients, which go home.
    assert of_case["forward"] == {"collective-permute@loop": 2}
    assert of_case["train"] == {
        "collective-permute@loop": 2 + 4,
        "collective-permute": 2,
        "all-reduce": 1,
    }


def test_segments_travel_too_and_heads_add_one_all_reduce(found):
    forward = found["count", "segments 2x2x2"]["forward"]
    assert forward == {"collective-permute": 3, "all-reduce": 1}


def test_memory_falls_with_the_number_of_devices(found):
    sizes = list(found["behaviour", "memory"].values())  # of 1, 2, 4 and 8 devices
    # The gradient's limit is in MiB: a share of what one device holds would loosen as that grows.
    for kind, limit in ((0, 0.35 * sizes[0][0]), (1, 32.0)):
        of_kind = [size[kind] for size in sizes]
        assert of_kind == sorted(of_kind, reverse=True), of_kind
        assert of_kind[-1] <= limit, of_kind


def test_numbers_that_are_not_finite_have_the_same_effect(found):
    of_case = found["behaviour", "not finite"]
    assert max(of_case.values()) <= 1e-5, of_case


@pytest.mark.parametrize("name", ["second derivatives", "eager and cross"])
def test_other_calls_give_what_they_give_on_one_device(found, name):
    of_case = found["behaviour", name]
    assert max(of_case.values()) <= 1e-5, of_case


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("attention_mask", "`attention_mask` is not supported where 8 devices split each"),
        ("attention_bias", "`attention_bias` is not supported where 8 devices split each"),
        ("return_attention_scores", "`return_attention_scores` is not supported where"),
        ("length", "must divide over the 8 devices of axis 'seq'. Received: 37 tokens; pad them"),
        ("symbolic length", "Received: 37 tokens; pad them to 40"),
        ("cross", "must have one length where sequences are split"),
        ("keys", "`position` must be rotary, ALiBi or relative along one axis where 8 devices"),
        ("grid", "`position` must be rotary, ALiBi or relative along one axis where 8 devices"),
        ("axes", "`attention_axes` must begin with axis 1"),
        ("decoding", "Models are not decoded where devices split sequences"),
    ],
)
def test_what_cannot_be_computed_is_refused_by_name(found, name, text):
    assert text in found["behaviour", "refused"][name]


def test_a_model_is_decoded_outside_of_the_distribution(found):
    tokens = found["behaviour", "refused"]["decoded outside"]
    assert tokens[:3] == [1, 2, 3]
    assert len(tokens) == 7
