"""Blocks for kernels with a mask argument: what they cover, and the masks that they are given."""

import numpy as np
import pytest

import reference
from backends import tensor, to_numpy
from kerasattention.attend.bias import TensorBias
from kerasattention.attend.inputs import AttentionInputs
from kerasattention.attend.mask import AttentionMask
from kerasattention.attend.tensors import KeySpans, Span
from kerasattention.attend.tiling import (
    StridedBlocks,
    additive_mask,
    plan_kernel_calls,
    strided_columns,
)

B, K, G, H = 2, 3, 1, 5
PADDING = np.arange(61) < np.array([[61], [23]])
CALLS = {
    # Name: T, S, mask, block size.
    "causal, more keys": (13, 61, {"causal": True, "offset": 7}, 5),
    "window": (61, 61, {"causal": True, "window": 9}, 4),
    "window, padding": (61, 61, {"causal": True, "window": 9, "key_mask": PADDING}, 4),
    "two-sided window": (61, 61, {"window": 5}, 7),
    "more queries than keys": (61, 17, {"window": 3}, 7),
    "explicit mask": (13, 17, {"mask": np.random.default_rng(1).random((B, 1, 13, 17)) < 0.5}, 5),
}


def inputs_of(length, keys, mask, bias=None):
    fields = {name: tensor(x) if isinstance(x, np.ndarray) else x for name, x in mask.items()}
    sizes = ((B, K, G, length, H), (B, K, keys, H), (B, K, keys, H))
    query, key, value = (tensor(np.zeros(size, "float32")) for size in sizes)
    return AttentionInputs(query, key, value, AttentionMask(**fields), bias=bias)


def visible_by_calls(inputs, calls):
    """Booleans (B, T, S) as the calls' keys and additive masks have it."""
    length, keys = inputs.query.shape[3], inputs.key.shape[2]
    seen = np.zeros((B, length, keys), bool)
    for call in calls:
        mask = additive_mask(inputs, call)
        for index in range(call.count):
            start = call.rows.start + index * call.rows.size
            first = call.columns.start + index * call.rows.size
            rows, columns = slice(start, start + call.rows.size), slice(first, None)
            visible = np.ones((B, call.rows.size, call.columns.size), bool)
            if mask is not None:
                found = to_numpy(mask)
                if call.count > 1:
                    found = found[:, index if found.shape[1] > 1 else 0]
                visible = np.broadcast_to(found[:, 0] == 0.0, visible.shape).copy()
            if call.causal:
                visible &= np.tri(call.rows.size, call.columns.size, dtype=bool)
            assert not seen[:, rows].any()
            seen[:, rows, columns][:, :, : call.columns.size] = visible
    return seen


@pytest.mark.parametrize("name", CALLS)
def test_blocks_with_their_masks_are_the_mask(name):
    length, keys, options, size = CALLS[name]
    inputs = inputs_of(length, keys, options)
    calls = plan_kernel_calls(inputs, broadcasts=False, block_size=size)
    assert sum(call.count * call.rows.size for call in calls) == length
    options = dict(options)
    offset = options.pop("offset", 0)
    if offset:
        options["query_positions"] = np.broadcast_to(np.arange(length) + offset, (B, length))
    expected = reference.visible(B, 1, length, keys, **options)[:, 0]
    np.testing.assert_array_equal(visible_by_calls(inputs, calls), expected)


def test_one_call_where_the_kernels_own_rules_do():
    whole, causal = inputs_of(13, 17, {}), inputs_of(13, 17, {"causal": True})
    assert plan_kernel_calls(whole, False) == [StridedBlocks(Span(0, 13), Span(0, 17))]
    only = StridedBlocks(Span(0, 13), Span(0, 13), causal=True)
    assert plan_kernel_calls(causal, False) == [only]
    assert additive_mask(causal, only) is None
    # A mask beside the causal rule is for kernels that take both.
    padded = inputs_of(13, 61, {"causal": True, "key_mask": PADDING})
    assert plan_kernel_calls(padded, True) == [only]
    found = to_numpy(additive_mask(padded, only))
    np.testing.assert_array_equal(np.squeeze(found) == 0.0, PADDING[:, :13])
    assert not any(call.causal for call in plan_kernel_calls(padded, False))
    assert plan_kernel_calls(inputs_of(0, 17, {}), False) == []


def test_blocks_of_a_window_are_joined_where_that_makes_fewer_calls():
    options = {"causal": True, "window": 9}
    calls = plan_kernel_calls(inputs_of(61, 61, options), False, 4)
    joined = [call for call in calls if call.count > 1]
    assert len(joined) == 1
    assert joined[0].all_rows.size == 4 * joined[0].count
    assert joined[0].all_columns.stop <= 61
    # Two blocks are no more calls than one for each of two samples.
    assert [call.count for call in plan_kernel_calls(inputs_of(61, 61, options), False, 31)] == [
        1
    ] * 2
    # A bias differs from block to block.
    bias = TensorBias(tensor(np.ones((1, 1, 61, 61), "float32")))
    calls = plan_kernel_calls(inputs_of(61, 61, options, bias), False, 4)
    assert {call.count for call in calls} == {1}


def test_a_bias_is_added_to_the_mask():
    x = np.random.default_rng(2).normal(size=(1, 1, 13, 17)).astype("float32")
    inputs = inputs_of(13, 17, {"causal": True}, TensorBias(tensor(x)))
    call = plan_kernel_calls(inputs, True, 5)[1]
    assert (call.rows, call.columns) == (Span(5, 5), Span(0, 10))
    visible = np.arange(10) <= np.arange(5, 10)[:, None]
    expected = np.where(visible, x[0, 0, 5:10, :10], -np.inf)
    np.testing.assert_allclose(to_numpy(additive_mask(inputs, call))[0, 0], expected)


def test_columns_of_strided_blocks_overlap():
    blocks = StridedBlocks(Span(3, 2), Span(1, 4), count=3)
    x = np.arange(20).reshape(2, 10)
    found = to_numpy(strided_columns(tensor(x), blocks))
    np.testing.assert_array_equal(found[0], [[1, 2, 3, 4], [3, 4, 5, 6], [5, 6, 7, 8]])
    np.testing.assert_array_equal(found[1], found[0] + 10)


def test_columns_of_several_spans_move_unless_they_are_fixed():
    """Key 0 for each block, keys 3 and 4 for the first, the next two for the second."""
    blocks = StridedBlocks(Span(4, 2), KeySpans((Span(0, 1), Span(3, 2))), count=3, fixed=(0,))
    x = np.arange(20).reshape(2, 10)
    found = to_numpy(strided_columns(tensor(x), blocks))
    np.testing.assert_array_equal(found[0], [[0, 3, 4], [0, 5, 6], [0, 7, 8]])
    np.testing.assert_array_equal(found[1], found[0] + 10)
    assert blocks.all_columns == KeySpans((Span(0, 1), Span(3, 6)))
    assert blocks.all_rows == Span(4, 6)
    alone = StridedBlocks(Span(4, 2), Span(0, 2), count=3, fixed=(0,))
    np.testing.assert_array_equal(to_numpy(strided_columns(tensor(x), alone))[0], [[0, 1]] * 3)


@pytest.mark.parametrize("counted", [True, False])
def test_the_padding_of_strided_blocks_is_that_of_their_own_keys(counted):
    """Two rules of positions and one of tokens; without the latter one mask serves all blocks."""
    padding = np.arange(10) < np.array([[10], [6]])
    options = {"causal": True, "window": 3} | ({"key_mask": padding} if counted else {})
    inputs = inputs_of(10, 10, options)
    blocks = StridedBlocks(Span(4, 2), Span(2, 4), count=3)
    found = to_numpy(additive_mask(inputs, blocks))
    rows, columns = np.arange(4, 6)[:, None], np.arange(2, 6)
    by_position = (columns <= rows) & (columns > rows - 3)
    visible = np.broadcast_to(by_position, (B, 3, 2, 4))
    if counted:
        own = padding[:, 2 + np.arange(3)[:, None] * 2 + np.arange(4)]  # (B, count, s)
        visible = visible & own[:, :, None]
    expected = np.where(visible, 0.0, -np.inf)[:, :, None]
    np.testing.assert_array_equal(np.broadcast_to(found, expected.shape), expected)
