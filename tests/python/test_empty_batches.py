"""Batches of no rows, no queries and no keys."""

import numpy as np
import pytest

from backends import BACKEND, tensor, value_and_gradients, value_and_gradients_of_layer
from kerasattention import (
    GroupQueryAttention,
    MultiHeadAttention,
    RelativePosition,
    scaled_dot_product_attention,
)
from problems import block_size

OPTIONS = {
    "plain": {"flash_attention": False},
    "chosen": {},
    "cap": {"logit_soft_cap": 5.0},
    "sink": {"attention_sink": True, "flash_attention": False},
    "window": {"sliding_window": 2},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_batch_of_no_rows(name):
    layer = MultiHeadAttention(2, 3, **OPTIONS[name])
    x = np.zeros((0, 5, 7), "float32")
    output, scores = layer(x, x, attention_mask=np.tri(5, dtype=bool), return_attention_scores=True)
    assert tuple(output.shape) == (0, 5, 7)
    assert tuple(scores.shape) == (0, 2, 5, 5)
    assert tuple(layer(x, x).shape) == (0, 5, 7)


# torch's kernel computes one query by other code.
@pytest.mark.parametrize(("heads", "length"), [(2, 1), (6, 13)])
@pytest.mark.parametrize("kind", ["mask of heads", "window", "positions", "spans"])
def test_gradients_of_no_rows(kind, heads, length):
    """Zeros, in blocks of 3 queries."""
    options, given = {"flash_attention": True}, {}
    if kind == "mask of heads":
        given["attention_mask"] = np.ones((0, heads, length, length), bool)
    elif kind == "window":
        options |= {"sliding_window": 3, "use_causal_mask": True}
    elif kind == "spans":
        options |= {"use_causal_mask": True}
        given["bidirectional"] = np.zeros((0, length), "int32")
    else:
        options["position"] = RelativePosition(8, 16)
        given["positions"] = 2 * np.arange(length)[None]
    layer = GroupQueryAttention(3, heads, 2, **options)
    x = np.zeros((0, length, 7), "float32")
    layer.build(x.shape)
    with block_size(3):
        gradients = value_and_gradients_of_layer(layer, {"query": x}, tensor(x), **given)
    assert gradients["query"].shape == x.shape
    assert not any(gradient.any() for gradient in gradients.values())


IMPLEMENTATIONS = ["plain", "blocked", None, *(["fused"] if BACKEND == "torch" else [])]
LENGTHS = [(0, 5), (3, 0), (0, 0)]
GIVEN = {
    "nothing": {},
    "causal window": {"causal": True, "sliding_window": 2},
    "mask": {"mask": True},
    "sink": {"sink": np.ones(6, "float32")},
    "scores": {"return_scores": True},
}


@pytest.mark.parametrize("name", GIVEN)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_no_queries_or_no_keys(name, implementation):
    """Zeros, and gradients of zeros."""
    for T, S in LENGTHS:
        options = dict(GIVEN[name])
        if options.pop("mask", False):
            options["attention_mask"] = np.ones((2, 1, T, S), bool)
        shapes = {"query": (2, T, 6, 3), "key": (2, S, 3, 3), "value": (2, S, 3, 7)}
        inputs = {which: np.ones(shape, "float32") for which, shape in shapes.items()}

        def attend(implementation=implementation, options=options, **inputs):
            found = scaled_dot_product_attention(**inputs, **options, implementation=implementation)
            return found if isinstance(found, tuple) else (found,)

        upstream = tensor(np.ones((2, T, 6, 7)))
        outputs, gradients = value_and_gradients(attend, inputs, upstream)
        assert outputs[0].shape == (2, T, 6, 7)
        assert not outputs[0].any()
        if name == "scores":
            assert outputs[1].shape == (2, 6, T, S)
        for which, gradient in gradients.items():
            assert gradient.shape == shapes[which]
            assert not gradient.any()
