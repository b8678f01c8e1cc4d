"""Biases of the logits by blocks: values, gradients and sums of several, against NumPy."""

import numpy as np
import pytest

from backends import tensor, to_numpy
from kerasattention import AlibiPosition
from kerasattention.attend.bias import (
    SumOfBiases,
    TensorBias,
    add_block_gradient,
    join_biases,
    of_heads,
)
from kerasattention.attend.mask import AttentionMask
from kerasattention.attend.tensors import Span

B, N, T, S = 2, 3, 7, 11
MASK = AttentionMask()
ROWS, COLUMNS = Span(2, 3), Span(4, 5)
BLOCK = np.s_[:, :, 2:5, 4:9]
SHAPES = [(B, N, T, S), (1, N, T, 1), (B, 1, 1, S), (1, 1, 1, 1)]


def numbers(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def expected_gradient(gradient, shape):
    """A block's gradient (B, N, t, s) in the whole, summed over the axes that broadcast."""
    whole = np.zeros((B, N, T, S))
    whole[BLOCK] = gradient
    axes = tuple(axis for axis in range(4) if shape[axis] == 1)
    return whole.sum(axis=axes, keepdims=True)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_block_of_a_tensor_and_its_gradient(shape):
    x, gradient = numbers(*shape), numbers(B, N, 3, 5, seed=2)
    bias = TensorBias(tensor(x))
    block = np.broadcast_to(to_numpy(bias.block(MASK, ROWS, COLUMNS)), (B, N, 3, 5))
    np.testing.assert_array_equal(block, np.broadcast_to(x, (B, N, T, S))[BLOCK])
    found = bias.block_gradient(tensor(gradient), MASK, ROWS, COLUMNS)["attention_bias"]
    expected = expected_gradient(gradient, shape)
    np.testing.assert_allclose(to_numpy(found), expected, atol=1e-5)
    # Added in place to what other blocks gave.
    added = bias.add_gradient(tensor(x), tensor(gradient), ROWS, COLUMNS)
    np.testing.assert_allclose(to_numpy(added), x + expected, atol=1e-5)
    of_rows = to_numpy(bias.rows_gradient(tensor(gradient), COLUMNS))
    rows = slice(None) if shape[2] == 1 else slice(2, 5)
    np.testing.assert_allclose(of_rows, expected[:, :, rows], atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_bias_of_some_heads(shape):
    x, heads = numbers(*shape), Span(1, 2)
    bias = SumOfBiases((TensorBias(tensor(x)), TensorBias(tensor(numbers(1, N, 1, S, seed=5)))))
    block = np.broadcast_to(to_numpy(bias.block(MASK, ROWS, COLUMNS)), (B, N, 3, 5))
    found = of_heads(bias, heads).block(MASK, ROWS, COLUMNS)
    np.testing.assert_array_equal(np.broadcast_to(to_numpy(found), (B, 2, 3, 5)), block[:, 1:])


def test_low_precision_is_widened():
    bias = TensorBias(tensor(numbers(1, 1, T, S), "float16"))
    assert "float32" in str(bias.block(MASK, ROWS, COLUMNS).dtype)


def test_several_biases_are_added_and_each_has_its_gradient():
    arrays = [numbers(*shape, seed=seed) for seed, shape in enumerate(SHAPES[:3])]
    parts = [TensorBias(tensor(x)) for x in arrays]
    bias = SumOfBiases((SumOfBiases((parts[0], parts[1])), parts[2]))
    names = ["0/0/attention_bias", "0/1/attention_bias", "1/attention_bias"]
    assert list(bias.tensors()) == names
    assert {bias.axes(name) for name in names} == {("batch", "heads", None, None)}
    total = sum(np.broadcast_to(x, (B, N, T, S)) for x in arrays)[BLOCK]
    np.testing.assert_allclose(to_numpy(bias.block(MASK, ROWS, COLUMNS)), total, atol=1e-6)

    gradient = numbers(B, N, 3, 5, seed=9)
    found = bias.block_gradient(tensor(gradient), MASK, ROWS, COLUMNS)
    totals = dict(zip(names, (tensor(x) for x in arrays), strict=True))
    added = add_block_gradient(bias, totals, tensor(gradient), MASK, ROWS, COLUMNS)
    assert list(found) == list(added) == names
    for name, x in zip(names, arrays, strict=True):
        expected = expected_gradient(gradient, x.shape)
        np.testing.assert_allclose(to_numpy(found[name]), expected, atol=1e-5)
        np.testing.assert_allclose(to_numpy(added[name]), x + expected, atol=1e-5)


def test_the_same_sum_of_other_tensors():
    parts = [TensorBias(tensor(numbers(1, 1, T, S))), TensorBias(tensor(numbers(1, N, T, S)))]
    bias = SumOfBiases(tuple(parts))
    other = {name: x * 2.0 for name, x in bias.tensors().items()}
    found = to_numpy(bias.with_tensors(other).block(MASK, ROWS, COLUMNS))
    np.testing.assert_allclose(found, 2 * to_numpy(bias.block(MASK, ROWS, COLUMNS)), atol=1e-6)


def test_a_precision_is_that_of_every_bias_of_a_sum():
    """ALiBi computes its bias in the precision that it is given."""
    positional = AlibiPosition().block_bias(N, causal=False)
    bias = SumOfBiases((TensorBias(tensor(numbers(1, 1, T, S))), positional))
    assert bias.in_precision("float64").biases[1] == positional.in_precision("float64")
    assert bias.in_precision("float64").biases[1] != positional


def test_joined_are_only_those_given():
    one, two = TensorBias("one"), TensorBias("two")
    assert join_biases([]) is None
    assert join_biases([None, None]) is None
    assert join_biases([None, one]) is one
    assert join_biases([one, None, two]) == SumOfBiases((one, two))
