"""What a block hides as diagonals and as counts of keys, against the mask itself."""

import numpy as np
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from backends import tensor
from kerasattention.attend.api import make_inputs
from kerasattention.attend.kernels.tensorflow import masking
from kerasattention.attend.mask import AttentionMask
from kerasattention.attend.tensors import Span


@st.composite
def blocks(draw):
    """Some rule of positions, and queries and keys anywhere."""
    visibility = AttentionMask(
        causal=draw(st.booleans()),
        window=draw(st.none() | st.integers(1, 9)),
        offset=draw(st.integers(-4, 9)),
    )
    rows = Span(draw(st.integers(0, 5)), draw(st.integers(1, 7)))
    columns = Span(draw(st.integers(0, 8)), draw(st.integers(1, 11)))
    return visibility, rows, columns


@given(blocks())
def test_diagonals_are_what_the_mask_hides(block):
    visibility, rows, columns = block
    visible = visibility.block_mask(rows, columns)
    expected = np.ones((rows.size, columns.size), bool) if visible is None else visible[0, 0]
    diagonal = np.arange(columns.size) - np.arange(rows.size)[:, None]
    found = np.ones_like(diagonal, bool)
    for low, high in masking.masked_diagonals(visibility, rows, columns):
        found &= (diagonal < low) | (diagonal > high)
    np.testing.assert_array_equal(found, expected)


@given(blocks())
def test_only_diagonals_are_set(block):
    visibility, rows, columns = block
    logits = np.random.default_rng(1).normal(size=(2, 3, rows.size, columns.size))
    diagonals = masking.masked_diagonals(visibility, rows, columns)
    found = masking._set_diagonals(tf.constant(logits), diagonals, -1e30)
    visible = visibility.block_mask(rows, columns)
    expected = logits if visible is None else np.where(visible, logits, -1e30)
    np.testing.assert_array_equal(found, expected)


@given(blocks(), st.none() | st.lists(st.booleans(), min_size=38, max_size=38))
def test_keys_are_counted(block, padding):
    visibility, rows, columns = block
    mask = None if padding is None else np.array(padding).reshape(2, 19)
    visibility = AttentionMask(
        visibility.causal, visibility.window, visibility.offset, key_mask=mask
    )
    query = tensor(np.zeros((2, 12, 2, 3), "float32"))
    key = tensor(np.zeros((2, 19, 1, 3), "float32"))
    problem = make_inputs(query, key, key, visibility)
    found = masking._count_keys(problem, rows, columns)
    visible = visibility.block_mask(rows, columns)
    shape = (1 if mask is None else 2, 1, rows.size, columns.size)
    expected = np.ones(shape) if visible is None else np.broadcast_to(visible, shape)
    np.testing.assert_array_equal(
        np.squeeze(found, (1, 4)), expected.sum(-1).reshape(-1, 1, rows.size)
    )
