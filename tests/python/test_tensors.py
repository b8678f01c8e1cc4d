"""Tensor helpers of the engine against NumPy."""

import keras
import numpy as np
import pytest

from backends import compiled, double, tensor, to_numpy
from kerasattention.attend import tensors
from kerasattention.attend.tensors import Span

B, K, G, T, S, H = 2, 3, 5, 7, 11, 13
N = K * G


def numbers(*shape):
    return np.random.default_rng(1).normal(size=shape).astype("float32")


def test_query_heads_are_grouped_by_the_key_head_they_share():
    x = numbers(B, T, N, H)
    split = tensors.split_query_heads(tensor(x), K)
    assert tuple(split.shape) == (B, K, G, T, H)
    found = to_numpy(split)
    for n in range(N):
        np.testing.assert_array_equal(found[:, n // G, n % G], x[:, :, n])
    np.testing.assert_array_equal(to_numpy(tensors.join_query_heads(split)), x)
    keys = to_numpy(tensors.split_key_heads(tensor(x)))
    np.testing.assert_array_equal(keys, x.transpose(0, 2, 1, 3))


def test_groups_are_stacked_and_unstacked():
    x = numbers(B, K, G, T, H)
    stacked = tensors.stack_groups(tensor(x))
    np.testing.assert_array_equal(to_numpy(stacked), x.reshape(B, K, G * T, H))
    np.testing.assert_array_equal(to_numpy(tensors.unstack_groups(stacked, G)), x)
    swapped = to_numpy(tensors.transpose_last(tensor(x)))
    np.testing.assert_array_equal(swapped, x.swapaxes(-1, -2))


def test_heads_of_masks_are_grouped_and_one_for_all_broadcasts():
    x = numbers(B, N, T, S)
    found = to_numpy(tensors.group_heads(tensor(x), K))
    np.testing.assert_array_equal(found, x.reshape(B, K, G, T, S))
    assert tuple(tensors.group_heads(tensor(x[:, :1]), K).shape) == (B, 1, 1, T, S)


def test_a_span_of_an_axis_is_taken_unless_the_axis_broadcasts():
    x = numbers(B, T, H)
    whole, one = tensor(x), tensor(x[:, :1])
    span = Span(2, 3)
    assert span.stop == 5
    np.testing.assert_array_equal(to_numpy(tensors.slice_axis(whole, 1, span)), x[:, 2:5])
    assert tensors.slice_axis(whole, 1, Span(0, T)) is whole
    assert tensors.slice_axis(one, 1, span) is one

    def from_tensor(start):
        return tensors.slice_axis(whole, 1, Span(start, 3))

    found = compiled(from_tensor)(tensor(np.array(2)))
    np.testing.assert_array_equal(to_numpy(found), x[:, 2:5])


def test_the_dtype_to_compute_in():
    kinds = ("float16", "bfloat16", "float32", "float64")
    found = [tensors.accumulator_of(kind) for kind in kinds]
    assert found == ["float32", "float32", "float32", "float64"]
    # No accelerator is there in these tests, so that low precision is widened everywhere.
    assert [tensors.wants_float32_inputs(kind) for kind in kinds] == [True, True, False, False]


@pytest.mark.parametrize("place", [None, 0, 5])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_number_that_is_not_finite_is_found_in_any_tensor(bad, place):
    arrays = [numbers(2, 3), numbers(1, 2, 5)]
    if place is not None:
        arrays[place % 2].reshape(-1)[place] = bad
    assert bool(tensors.are_finite([tensor(x) for x in arrays])) is (place is None)


def test_infinities_of_both_signs_do_not_cancel():
    assert not bool(tensors.are_finite([tensor(np.array([np.inf])), tensor(np.array([-np.inf]))]))


@pytest.mark.usefixtures("doubles")
def test_functions_that_keras_computes_in_float32_keep_float64():
    x, other = np.random.default_rng(2).normal(size=(2, 3, 5))
    segments = np.array([4, 0, 4])
    cos, sin = tensors.cos_and_sin(double(x))
    summed = np.zeros((7, 5))
    np.add.at(summed, segments, x)
    normal = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-3) * other[0]
    pairs = [
        (tensors.matmul(double(x), double(other.T)), x @ other.T),
        (tensors.tanh(double(x)), np.tanh(x)),
        (cos, np.cos(x)),
        (sin, np.sin(x)),
        (tensors.segment_sum(double(x), tensor(segments), 7), summed),
        (tensors.rms_normalize(double(x), tensor(other[0], "float64"), 1e-3), normal),
    ]
    for found, expected in pairs:
        assert keras.backend.standardize_dtype(found.dtype) == "float64"
        np.testing.assert_allclose(to_numpy(found), expected, rtol=1e-13, atol=1e-14)
