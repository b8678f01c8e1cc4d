"""Attention shared by the devices of a `keras.distribution`: its collectives, loops and numbers.

All cases run in one process with 8 simulated devices; this one has a single device.
"""

import json
import os
import subprocess
import sys

import pytest

import kerasattention
from fresh import xla_flags

CASES = os.path.join(os.path.dirname(__file__), "sharded_cases.py")

# All-reduces of the forward pass and at most of a step of training; no other collective.
FLOORS = {
    "data 8, T 16": (0, 1),
    "data 8, batch 24": (0, 1),
    "data 8, accelerator": (0, 1),
    "model 2x4, rotary, window, norm, scale, gate": (1, 3),
    "model 2x4, K 2 whole": (1, 3),
    "model 1x8, N over ragged K": (1, 3),
    "heads 2x2x2, T 16": (1, 6),
    "heads 1x1x8, segments, relative, cap": (1, 3),
    "heads 2x2x2, accelerator": (1, 6),
    "heads 2x2x2, padding, alibi, sink": (1, 6),
    "heads 2x2x2, dropout": (1, 6),
}
CONTROLS = ["control: sample loop over the whole batch", "control: features split"]
COMPARED = [
    *("data 8", "model 2x4, K 2 whole", "model 1x8, N over ragged K", "heads 2x2x2"),
    *("model 2x4, relative keys", "heads 2x2x2, accelerator"),
]


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
    return {(group, name): x for group, name, x in map(json.loads, done.stdout.splitlines())}


def at_floor(found, floors):
    forward, train = floors
    return (
        found["forward"] == ({"all-reduce": forward} if forward else {})
        and found["train"].keys() <= {"all-reduce"}
        and found["train"]["all-reduce"] <= train
    )


@pytest.mark.parametrize("name", FLOORS)
def test_collectives_are_those_that_cannot_be_avoided(found, name):
    of_case = found["count", name]
    assert at_floor(of_case, FLOORS[name]), of_case


@pytest.mark.parametrize("name", CONTROLS)
def test_the_count_notices_what_is_not_shared(found, name):
    of_case = found["count", name]
    assert not at_floor(of_case, (1, 6)), of_case


def test_loops_over_samples_have_the_samples_of_a_device(found):
    # 24 samples on 8 devices, each with 5 blocks of 256 queries. The gradients of the embeddings
    # are added up in a loop over a device's tokens.
    shared, whole = (found["count", name] for name in ("data 8, batch 24", CONTROLS[0]))
    tokens = 3 * 1280
    for kind in ("forward trips", "train trips"):
        assert {trips for trips, depth in shared[kind] if depth == 0} - {tokens} == {3}
        assert {trips for trips, depth in shared[kind] if depth == 1} == {5}
        assert {trips for trips, depth in whole[kind] if depth == 0} - {tokens} == {24}


@pytest.mark.parametrize("name", COMPARED)
def test_two_steps_give_what_one_device_gives(found, name):
    of_case = found["compare", name]
    assert len(of_case) > 10, of_case
    assert max(of_case.values()) <= 1e-5, of_case


@pytest.mark.parametrize(
    "name", ["mask bias and scores", "eager calls", "second derivatives", "elsewhere"]
)
def test_results_and_gradients_are_those_of_one_device(found, name):
    of_case = found["behaviour", name]
    assert max(of_case.values()) <= 1e-5, of_case


def test_numbers_that_are_not_finite_have_the_same_effect(found):
    of_case = found["behaviour", "not finite"]
    assert max(of_case.values()) <= 1e-5, of_case


def test_other_kinds_of_layers(found):
    of_case = found["behaviour", "other models"]
    close = {"float16": 2e-3, "bfloat16": 2e-2}
    wrong = {name: x for name, x in of_case.items() if x > close.get(name, 1e-5)}
    assert not wrong


def test_nothing_changes_where_nothing_is_shared(found):
    of_case = found["behaviour", "programs"]
    assert all(x is True for x in of_case.values()), of_case


def test_a_layout_of_tokens_is_refused_unless_it_splits_the_heads_too(found):
    of_case = found["behaviour", "split tokens"]
    assert of_case["over the axis of the heads"] <= 1e-5
    assert "needs all tokens that it attends to on one device" in of_case["message"]
    assert "the layout of 'before/output' splits them" in of_case["message"]
    assert "the layout of the data splits them" in of_case["message of data"]
    assert "('batch', 'seq', None)" in of_case["message"]


# Rows and key/value heads of a cache's part on one device, with sizes of 1 left out.
DECODED = {
    "data 8": ([8, 8], [1, 8]),
    "model 2x4": ([6, 8], [3, 2]),
    "heads 2x2x2, encoder": ([4, 2], [2, 1]),
    "heads 2x2x2": ([6, 2], [3, 1]),
}


@pytest.mark.parametrize("name", DECODED)
def test_decoding_gives_the_same_tokens_with_caches_in_parts(found, name):
    of_case = found["decode", name]
    assert "error" not in of_case, of_case["error"]
    assert of_case["same tokens"]
    assert of_case["distinct tokens"] > 10
    assert of_case["last are finite"]
    assert of_case["parts stay"], of_case
    rows, part = DECODED[name]
    for whole, of_device in of_case["parts"]:
        if len(whole) == 2:  # the mask of the keys
            assert of_device == [part[0], whole[1]]
            continue
        assert whole[: len(rows)] == rows
        assert of_device == part + whole[len(rows) :]


@pytest.mark.parametrize("name", DECODED)
def test_a_step_of_decoding_has_one_all_reduce_a_layer(found, name):
    layers = 3 if "encoder" in name else 2
    expected = {} if name.startswith("data") else {"all-reduce": layers}
    assert found["decode", name]["collectives"] == expected
