"""Rotary positions against complex numbers."""

import keras
import numpy as np
import pytest
from keras import ops

import position_reference as formulas
from backends import run, tensor, to_numpy, value_and_gradients
from kerasattention import RotaryPosition
from position_reference import KEYS_PER_SAMPLE, PER_SAMPLE, B, K, N, S, T, numbers


@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize(("size", "fraction"), [(14, 1.0), (20, 0.5), (6, 1 / 3)])
@pytest.mark.parametrize("positions", [np.arange(5, 5 + T), PER_SAMPLE], ids=["(T)", "(B,T)"])
def test_rotary_turns_pairs_as_complex_numbers(layout, size, fraction, positions):
    query, key = numbers(B, T, N, size), numbers(B, S, K, size, seed=1)
    position = RotaryPosition(theta=70.0, fraction=fraction, layout=layout)
    rotated = run(
        lambda q, k, here, there: position.rotate(q, k, here, there),
        *(tensor(x) for x in (query, key, positions, KEYS_PER_SAMPLE)),
    )
    pairs = formulas.frequencies(70.0, round(fraction * size))
    expected = (
        formulas.rotate(query, positions, pairs, layout),
        formulas.rotate(key, KEYS_PER_SAMPLE, pairs, layout),
    )
    for found, wanted in zip(rotated, expected, strict=True):
        np.testing.assert_allclose(to_numpy(found), wanted, atol=2e-5)


def test_hand_worked_quarter_turn():
    """A frequency of 1 and of 0.1: at position 1 and 10 the second pair turns by 0.1 and 1."""
    query = tensor(np.array([1.0, 0.0, 0.0, 2.0]).reshape(1, 1, 1, 4) * np.ones((1, 2, 1, 1)))
    rotated, _ = RotaryPosition(theta=100.0).rotate(query, query, *[tensor(np.array([1, 10]))] * 2)
    expected = [
        [np.cos(1), -2 * np.sin(0.1), np.sin(1), 2 * np.cos(0.1)],
        [np.cos(10), -2 * np.sin(1), np.sin(10), 2 * np.cos(1)],
    ]
    np.testing.assert_allclose(to_numpy(rotated)[0, :, 0], expected, atol=1e-6)


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_the_gradient_of_a_turn_is_the_turn_back(layout):
    query, upstream = numbers(B, T, N, 10), numbers(B, T, N, 10, seed=3)
    position = RotaryPosition(layout=layout, fraction=0.8)
    here = tensor(PER_SAMPLE)
    _, found = value_and_gradients(
        lambda query: position.rotate(query, query[:, :, :1], here, here),
        {"query": tensor(query)},
        tensor(upstream),
    )
    pairs = formulas.frequencies(1e4, 8)
    expected = formulas.rotate(upstream, -PER_SAMPLE, pairs, layout)
    np.testing.assert_allclose(found["query"], expected, atol=2e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_angles_are_float32_in_low_precision(dtype):
    """Far positions are not numbers of bfloat16: the error must stay that of one rounding."""
    query = ops.cast(tensor(numbers(1, T, 1, 8)), dtype)
    positions = np.arange(T) + 100_001
    rotated, _ = RotaryPosition().rotate(query, query, *[tensor(positions)] * 2)
    assert keras.backend.standardize_dtype(rotated.dtype) == dtype
    expected = formulas.rotate(to_numpy(query), positions, formulas.frequencies(1e4, 8), "half")
    step = {"float16": 2**-11, "bfloat16": 2**-8}[dtype]
    # float32 itself knows an angle of 100000 to 0.004.
    assert np.abs(to_numpy(rotated) - expected).max() < 3 * step + 0.012
