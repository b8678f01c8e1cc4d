"""Every wrong argument or input is refused with its name, the rule and what came."""

import re

import keras
import numpy as np
import pytest

from backends import tensor, to_numpy
from kerasattention import GroupQueryAttention, MultiHeadAttention, RotaryPosition

B, T, S, D = 2, 5, 7, 11
X, V = np.ones((B, T, D)), np.ones((B, S, D))


def mha(**options):
    return MultiHeadAttention(**({"num_heads": 2, "key_dim": 4} | options))


def gqa(**options):
    return GroupQueryAttention(
        **({"head_dim": 4, "num_query_heads": 6, "num_key_value_heads": 2} | options)
    )


ARGUMENTS = {
    "no heads": (
        mha,
        {"num_heads": 0},
        "`num_heads` must be a positive integer. Received: num_heads=0",
    ),
    "heads as a float": (mha, {"num_heads": 2.0}, "num_heads=2.0"),
    "heads as a flag": (mha, {"num_heads": True}, "num_heads=True"),
    "heads that do not divide": (gqa, {"num_key_value_heads": 4}, "one of [1, 2, 3, 6]"),
    "dropout of all": (mha, {"dropout": 1.0}, "less than 1. Received: dropout=1.0"),
    "dropout NaN": (mha, {"dropout": float("nan")}, "dropout=nan"),
    "values of no size": (
        mha,
        {"value_dim": 0},
        "`value_dim` must be",
    ),
    "window of nothing": (gqa, {"sliding_window": 0}, "sliding_window=0"),
    "flash attention": (gqa, {"flash_attention": "yes"}, "flash_attention='yes'"),
    "cap": (gqa, {"logit_soft_cap": -1}, "logit_soft_cap=-1"),
    "position": (gqa, {"position": "rotary"}, "such as `RotaryPosition()`"),
    "seed": (gqa, {"seed": 1.5}, "seed=1.5"),
    "unknown": (mha, {"heads": 3}, "heads"),
    "of the other layer": (gqa, {"output_shape": 3}, "of `MultiHeadAttention` only"),
    "initializer": (mha, {"kernel_initializer": "nought"}, "nought"),
    "output shape": (mha, {"output_shape": (3, -1)}, "output_shape=(3, -1)"),
}


@pytest.mark.parametrize("case", ARGUMENTS.values(), ids=ARGUMENTS.keys())
def test_wrong_arguments(case):
    make, options, message = case
    with pytest.raises(ValueError, match=re.escape(message)):
        make(**options)


CALLS = {
    "two axes": ([np.ones((B, D))], {}, "at least 3 axes"),
    "a list": ([[X, V]], {}, "`query` must be one tensor"),
    "nothing": ([None], {}, "`query` is required"),
    "integers": (
        [X.astype("int32")],
        {},
        "`query` must be floating-point numbers. Received: query of dtype int32",
    ),
    "batches": ([X, np.ones((3, S, D))], {}, "query (2, 5, 11), value (3, 7, 11)"),
    "lengths of key and value": ([X, V, X], {}, "`value` and `key`"),
    "mask of one axis": ([X], {"attention_mask": np.ones(T, bool)}, "attention_mask of shape (5,)"),
    "mask of another size": ([X, V], {"attention_mask": np.ones((T, T), bool)}, "(2, 2, 5, 7)"),
    "mask of other heads": ([X], {"attention_mask": np.ones((B, 3, T, T), bool)}, "(2, 3, 5, 5)"),
    "padding of another input": (
        [X, V],
        {"value_mask": np.ones((B, T), bool)},
        "value_mask of shape (2, 5); value (2, 7, 11)",
    ),
    "bias of another size": (
        [X],
        {"attention_bias": np.ones((4, T))},
        "attention_bias of shape (4, 5)",
    ),
    "a mask as bias": (
        [X],
        {"attention_bias": np.ones((T, T), bool)},
        "`attention_mask` says what to attend",
    ),
    "segments of floats": ([X], {"segment_ids": np.ones((B, T))}, "`segment_ids` must be integers"),
    "segments of two inputs": ([X, V], {"segment_ids": np.ones((B, T), "int32")}, "self-attention"),
    "positions of another length": (
        [X],
        {"positions": np.ones((B, S), "int32")},
        "positions of shape (2, 7)",
    ),
}


@pytest.mark.parametrize("case", CALLS.values(), ids=CALLS.keys())
def test_wrong_calls_and_the_layer_works_on(case):
    inputs, options, message = case
    layer = mha()
    as_tensors = [tensor(x) if isinstance(x, np.ndarray) else x for x in inputs]
    options = {name: tensor(x) for name, x in options.items()}
    with pytest.raises(ValueError, match=re.escape(message)):
        layer(*as_tensors, **options)
    assert layer(tensor(X), tensor(V)).shape == (B, T, D)


def test_wrong_inputs_are_refused_when_a_model_is_made():
    with pytest.raises(ValueError, match="`query` must be floating-point numbers"):
        mha()(keras.Input((T, D), dtype="int32"))
    with pytest.raises(ValueError, match=re.escape("(None, 2, 5, 5)")):
        mha()(keras.Input((T, D)), attention_mask=keras.Input((T, S), dtype="bool"))


def test_axes_and_pairs_are_checked_once_the_inputs_are_known():
    with pytest.raises(ValueError, match="0 is the batch axis"):
        mha(attention_axes=(0,))(tensor(X))
    with pytest.raises(ValueError, match="must be even"):
        mha(key_dim=5, position=RotaryPosition())(tensor(X))


def test_a_bias_may_be_whole_numbers():
    distances = -np.abs(np.subtract.outer(np.arange(T), np.arange(T))).astype("int32")
    layer = mha()
    wanted = layer(tensor(X), attention_bias=tensor(distances, "float32"))
    given = layer(tensor(X), attention_bias=tensor(distances))
    np.testing.assert_allclose(to_numpy(given), to_numpy(wanted), atol=1e-6)
