"""Buckets and diagonals of relative positions."""

import numpy as np
import pytest

import position_reference as formulas
from backends import tensor, to_numpy
from kerasattention.positions.buckets import distance_buckets, spread_diagonals, sum_diagonals


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def test_buckets_by_hand():
    """T5's: 16 a side, 8 of them exact, then powers of the square root of two from 8 to 128."""
    sides = distance_buckets(32, 128, bidirectional=True)
    at = dict(zip(range(-128, 129), sides.tolist(), strict=True))
    assert [at[-d] for d in range(8)] == list(range(8))
    assert [at[-d] for d in (8, 11, 12, 15, 16, 22, 23, 32, 64, 90, 91, 128)] == [
        *(8, 8, 9, 9, 10, 10, 11, 12, 14, 14, 15, 15)
    ]
    assert [at[d] for d in (1, 7, 8, 128)] == [17, 23, 24, 31]
    behind = distance_buckets(32, 128, bidirectional=False)
    at = dict(zip(range(-128, 129), behind.tolist(), strict=True))
    assert [at[d] for d in (1, 50, 128, 0, -1, -15, -16, -128)] == [0, 0, 0, 0, 1, 15, 16, 31]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("count", "farthest"), [(32, 128), (6, 17), (10, 100), (64, 256)])
def test_buckets_by_formula(causal, count, farthest):
    found = distance_buckets(count, farthest, bidirectional=not causal)
    distances = range(-farthest, farthest + 1)
    expected = [formulas.bucket(d, count, farthest, causal) for d in distances]
    # Where the logarithm is whole but for rounding, float32 decides, as in T5's code.
    assert np.count_nonzero(found != expected) <= 2
    assert np.abs(found - expected).max() <= 1


def test_diagonals_are_spread_and_summed():
    values, x = numbers(3, 11), numbers(3, 5, 7, seed=1)
    spread = np.array([[v[4 - i : 11 - i] for i in range(5)] for v in values])
    np.testing.assert_allclose(to_numpy(spread_diagonals(tensor(values), 5, 7)), spread, 1e-6)
    summed = [[np.trace(m, d) for d in range(-4, 7)] for m in x]
    np.testing.assert_allclose(to_numpy(sum_diagonals(tensor(x))), summed, 1e-4, 1e-6)
    one = numbers(3, 7)
    np.testing.assert_allclose(to_numpy(spread_diagonals(tensor(one), 1, 7))[:, 0], one, 1e-6)
    np.testing.assert_allclose(to_numpy(sum_diagonals(tensor(one[:, None]))), one, 1e-6)
