"""Masked diagonals of a block and counts of its keys, against the mask itself."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

import kerasattention as ka
from backends import tensor
from kerasattention.attend.api import make_inputs
from kerasattention.attend.kernels.tensorflow import masking
from kerasattention.attend.mask import AttentionMask
from kerasattention.attend.tensors import Span


@st.composite
def blocks(draw):
    """Some rule of positions, and queries and keys anywhere."""
    mask = AttentionMask(
        causal=draw(st.booleans()),
        window=draw(st.none() | st.integers(1, 9)),
        offset=draw(st.integers(-4, 9)),
    )
    rows = Span(draw(st.integers(0, 5)), draw(st.integers(1, 7)))
    columns = Span(draw(st.integers(0, 8)), draw(st.integers(1, 11)))
    return mask, rows, columns


@given(blocks())
def test_diagonals_are_those_that_the_mask_masks_out(block):
    mask, rows, columns = block
    visible = mask.block_mask(rows, columns)
    expected = np.ones((rows.size, columns.size), bool) if visible is None else visible[0, 0]
    diagonal = np.arange(columns.size) - np.arange(rows.size)[:, None]
    found = np.ones_like(diagonal, bool)
    for low, high in masking.masked_diagonals(mask, rows, columns):
        found &= (diagonal < low) | (diagonal > high)
    np.testing.assert_array_equal(found, expected)


@given(blocks())
def test_only_diagonals_are_set(block):
    mask, rows, columns = block
    logits = np.random.default_rng(1).normal(size=(2, 3, rows.size, columns.size))
    diagonals = masking.masked_diagonals(mask, rows, columns)
    found = masking._set_diagonals(tf.constant(logits), diagonals, -1e30)
    visible = mask.block_mask(rows, columns)
    expected = logits if visible is None else np.where(visible, logits, -1e30)
    np.testing.assert_array_equal(found, expected)


@given(blocks(), st.none() | st.lists(st.booleans(), min_size=38, max_size=38))
def test_keys_are_counted(block, padding):
    mask, rows, columns = block
    key_mask = None if padding is None else np.array(padding).reshape(2, 19)
    mask = AttentionMask(mask.causal, mask.window, mask.offset, key_mask=key_mask)
    query = tensor(np.zeros((2, 12, 2, 3), "float32"))
    key = tensor(np.zeros((2, 19, 1, 3), "float32"))
    inputs = make_inputs(query, key, key, mask)
    found = masking._count_keys(inputs, rows, columns)
    visible = mask.block_mask(rows, columns)
    shape = (1 if key_mask is None else 2, 1, rows.size, columns.size)
    expected = np.ones(shape) if visible is None else np.broadcast_to(visible, shape)
    np.testing.assert_array_equal(
        np.squeeze(found, (1, 4)), expected.sum(-1).reshape(-1, 1, rows.size)
    )


@pytest.mark.parametrize("kernel", ["plain", "blocked", None])
@pytest.mark.parametrize("compiled", [False, True])
def test_tensorflows_checker_of_numerics_finds_nothing(kernel, compiled):
    """Of masked-out keys and values that hold NaN, and of a query that sees no key.

    In a graph it checks the function's arguments too.
    """
    rng = np.random.default_rng(4)
    mask = rng.random((2, 1, 13, 17)) < 0.7
    mask[..., 5:8], mask[:, :, 3] = False, False
    sizes = {"query": (2, 13, 6, 5), "key": (2, 17, 3, 5), "value": (2, 17, 3, 4)}
    given = {name: rng.normal(size=size).astype("float32") for name, size in sizes.items()}
    given["key"][:, 5:8] = given["value"][:, 5:8] = 0.0 if compiled else np.nan
    tensors = {name: tf.constant(x) for name, x in given.items()}

    def gradients(**tensors):
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            output = ka.scaled_dot_product_attention(
                **tensors, attention_mask=mask, causal=True, implementation=kernel
            )
        return output, tape.gradient(output, tensors)

    expected = gradients(**tensors)
    tf.debugging.enable_check_numerics()
    try:
        found = (tf.function(gradients) if compiled else gradients)(**tensors)
    finally:
        tf.debugging.disable_check_numerics()
    for x, y in zip(tf.nest.flatten(found), tf.nest.flatten(expected), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-6)
