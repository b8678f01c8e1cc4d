"""The parts of the guard against masked-out NaN and infinity, each by itself."""

import keras
import numpy as np
import pytest
from keras import ops

from backends import BACKEND, compiled, tensor, to_numpy, value_and_gradients
from kerasattention.attend import finite
from kerasattention.attend.bias import TensorBias
from kerasattention.attend.inputs import AttentionInputs
from kerasattention.attend.mask import AttentionMask
from kerasattention.attend.poisoned_rows import _slice_rows
from kerasattention.attend.tensors import Span

B, K, G, T, S, X = 1, 2, 1, 3, 7, 5
POISON = [np.nan, np.inf, -np.inf]


def numbers(*shape):
    return np.random.default_rng(1).normal(size=shape)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_poisoned_rows_are_nan_and_low_precision_is_widened(dtype):
    output = tensor(numbers(B, K, G, T, X), dtype)
    rows = np.array([[True, False, False], [False, False, True]])[None, :, None]  # (B, K, G, T)
    found = finite.poison(output, tensor(rows))
    assert keras.backend.standardize_dtype(found.dtype) == "float32"
    expected = np.where(rows[..., None], np.nan, to_numpy(output))
    np.testing.assert_array_equal(to_numpy(found), expected)


def test_the_gradient_of_a_poisoned_row_is_infinite_where_it_is_used():
    rows = np.array([[True, False, True], [False, False, False]])[None, :, None]
    upstream = np.ones((B, K, G, T, X), "float32")
    upstream[0, 0, 0, 2] = 0.0
    _, found = value_and_gradients(
        lambda x: (finite.poison(x, tensor(rows)),),
        {"x": tensor(numbers(B, K, G, T, X))},
        tensor(upstream),
    )
    used = rows[..., None] & (upstream != 0)
    np.testing.assert_array_equal(found["x"], np.where(used, np.inf, upstream))


def test_zeros_stand_for_numbers_that_are_not_finite_and_the_derivative_is_one():
    x = numbers(T, X)
    x[0, :3] = POISON
    upstream = numbers(T, X).astype("float32")
    (found,), gradients = value_and_gradients(
        lambda x: (finite.clean(x),), {"x": tensor(x)}, tensor(upstream)
    )
    np.testing.assert_array_equal(found, np.where(np.isfinite(x), x, 0).astype("float32"))
    # The loss, which is not read, has no part in it.
    np.testing.assert_array_equal(gradients["x"], upstream)


@pytest.mark.parametrize("number", [1.0, *POISON])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_number_of_one_tensor_decides(place, number):
    tensors = [numbers(2, 3), numbers(5), numbers(2, 1, 3)]
    tensors[place].flat[1] = number
    found = finite.known_to_be_finite([tensor(x) for x in tensors])
    assert found is bool(np.isfinite(number))


def test_nothing_is_known_before_the_numbers_are():
    found = []

    def function(x):
        found.append(finite.known_to_be_finite([x]))
        return x

    if BACKEND == "torch":
        function(ops.ones((2, 3)).to("meta"))
    else:
        compiled(function)(ops.ones((2, 3)))
    assert found == [None]


def inputs_with(bias=None, query=(B, K, G, T, X), **mask):
    arrays = (numbers(*query), numbers(B, K, S, X), numbers(B, K, S, X))
    fields = {name: tensor(x) if isinstance(x, np.ndarray) else x for name, x in mask.items()}
    bias = None if bias is None else TensorBias(tensor(bias))
    return AttentionInputs(*map(tensor, arrays), AttentionMask(**fields), bias=bias)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, False),
        ({"key_mask": np.ones((B, S), bool)}, True),
        ({"query_mask": np.ones((B, T), bool)}, True),
        ({"causal": True}, True),
        ({"causal": True, "offset": S}, False),  # all queries after all keys
        ({"bias": np.zeros((1, 1, T, S))}, True),  # may be minus infinity
        ({"causal": True, "masked_out_is_finite": True}, False),
    ],
    ids=["nothing", "keys", "queries", "causal", "causal, all seen", "bias", "told"],
)
def test_what_may_mask_out_a_number_that_is_not_finite(options, expected):
    assert bool(finite.may_mask_out(inputs_with(**options))) is expected


@pytest.mark.parametrize("place", ["query", "key", "value"])
def test_cleaned_inputs_differ_in_the_numbers_that_are_not_finite(place):
    inputs = inputs_with()
    array = to_numpy(getattr(inputs, place)).copy()
    array[0, 0, ..., 1] = np.nan
    given = {"query": inputs.query, "key": inputs.key, "value": inputs.value}
    given[place] = tensor(array)
    found = finite.cleaned(AttentionInputs(**given, mask=inputs.mask))
    for name, x in given.items():
        expected = np.nan_to_num(to_numpy(x), nan=0.0)
        np.testing.assert_array_equal(to_numpy(getattr(found, name)), expected)


@pytest.mark.parametrize("of_values", [True, False])
def test_a_kernel_is_given_finite_inputs_and_its_rows_are_poisoned(of_values):
    """Query 0 sees key 0, query 1 the first two, and so on; the value of key 1 is NaN."""
    inputs = inputs_with(causal=True)
    value = to_numpy(inputs.value).copy()
    value[0, 1, 1, 3] = np.nan
    inputs = AttentionInputs(inputs.query, inputs.key, tensor(value), inputs.mask)
    given = []

    def kernel(inputs):
        given.append(to_numpy(inputs.value))
        return inputs.query

    with_rows = finite.with_finite_inputs(inputs, kernel, None, of_values)
    expected = to_numpy(inputs.query).copy()
    if of_values:
        expected[0, 1, :, 1:] = np.nan
    np.testing.assert_array_equal(to_numpy(with_rows), expected)
    np.testing.assert_array_equal(given[0], np.nan_to_num(value, nan=0.0))


@pytest.mark.parametrize("start", [1, np.array(1, "int32")], ids=["number", "tensor"])
def test_the_rows_of_a_block_are_cut_out(start):
    rows = np.arange(B * K * 2 * T).reshape(B, K, 2, T)
    start = tensor(start) if isinstance(start, np.ndarray) else start
    found = _slice_rows(tensor(rows), Span(start, 2))
    np.testing.assert_array_equal(to_numpy(found), rows[..., 1:3])
