"""The mathematics of one block against the float64 reference."""

import numpy as np
import pytest

from backends import run, tensor, to_numpy
from kerasattention.attend import api, block
from kerasattention.attend.bias import TensorBias
from kerasattention.attend.mask import AttentionMask
from kerasattention.attend.tensors import Span
from problems import PROBLEMS, SEED, B, G, K, N, S, T

NAMES = [
    "nothing hidden",
    "window, causal, offset",
    "mask with empty rows",
    "cap, bias, causal",
    "sink, empty rows",
    "dropout, window, causal",
]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def inputs_of(given, values=None):
    """The kernel's inputs, made of the tensors that are given in place of the arrays."""
    values = {name: tensor(x) for name, x in given.trainable().items()} | (values or {})
    fields = {
        k: tensor(x) if isinstance(x, np.ndarray) else x for k, x in given.mask_fields.items()
    }
    bias = TensorBias(values["bias"]) if "bias" in values else None
    return api.make_inputs(
        *(values[name] for name in ("query", "key", "value")),
        AttentionMask(**fields),
        biases=[bias],
        scale=given.scale,
        soft_cap=given.cap,
        sink=values.get("sink"),
        rate=given.rate,
        seed=tensor(np.array(SEED), "int32") if given.rate else None,
    ).scaled()


@pytest.mark.parametrize("name", NAMES)
def test_blocks_of_queries_give_the_reference_and_restore_the_weights(name):
    given = PROBLEMS[name]
    inputs = inputs_of(given)
    output, weights = given.expected
    blocks = block.plan_blocks(inputs, 5)
    assert [part.rows for part in blocks] == [Span(0, 5), Span(5, 5), Span(10, 3)]
    values = given.trainable()

    def compute(*tensors):
        inputs = inputs_of(given, dict(zip(values, tensors, strict=True)))
        return [
            (*block.forward_block(inputs, *part), block.block_logits(inputs, *part)[0])
            for part in blocks
        ]

    results = run(compute, *(tensor(x) for x in values.values()))
    for (rows, columns), (found, lse, logits) in zip(blocks, results, strict=True):
        here = slice(rows.start, rows.stop)
        keys = slice(columns.start, columns.stop)
        expected = output[:, here].transpose(0, 2, 1, 3).reshape(B, K, G, rows.size, -1)
        np.testing.assert_allclose(to_numpy(found), expected, **CLOSE)
        restored = np.exp(to_numpy(logits) - to_numpy(lse)).reshape(B, N, rows.size, columns.size)
        np.testing.assert_allclose(restored, weights[:, :, here, keys], **CLOSE)
        # No weight lies outside of the block's keys.
        np.testing.assert_allclose(restored.sum(-1), weights[:, :, here].sum(-1), **CLOSE)
        empty = ~given.seen[:, :, here].any(-1) if given.sink is None else np.False_
        assert (
            not to_numpy(lse)
            .reshape(B, N, rows.size)[np.broadcast_to(empty, (B, N, rows.size))]
            .any()
        )


def test_a_blocks_keys_are_those_that_one_of_its_queries_sees():
    inputs = inputs_of(PROBLEMS["window, causal, offset"])  # a window of 4 from position 4
    assert [part.columns for part in block.plan_blocks(inputs, 5)] == [
        Span(1, 8),
        Span(6, 8),
        Span(11, 6),
    ]


def test_dropped_weights_are_zero_and_the_others_grow():
    inputs = inputs_of(PROBLEMS["dropout"])
    keep = to_numpy(block.keep_factor(inputs, Span(3, 5), Span(2, 11)))
    assert keep.shape == (B, K, G, 5, 11)
    np.testing.assert_allclose(np.unique(keep), [0.0, 1 / 0.7], rtol=1e-6)
    whole = to_numpy(block.keep_factor(inputs, Span(0, T), Span(0, S)))
    np.testing.assert_array_equal(keep, whole[..., 3:8, 2:13])
    assert block.keep_factor(inputs_of(PROBLEMS["causal"]), Span(0, T), Span(0, S)) is None
