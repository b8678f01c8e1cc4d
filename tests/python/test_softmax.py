"""The parts of a softmax, with sinks, caps and rows without keys, by hand."""

import math

import numpy as np

from backends import tensor, to_numpy
from kerasattention.attend import softmax

LOGITS = np.log([[1.0, 2.0, 5.0], [3.0, 1.0, 4.0]])
CLOSE = {"rtol": 1e-6, "atol": 1e-6}


def weights_of(logits, sink=None, may_be_empty=False):
    parts = softmax.exponentiate(tensor(logits), sink, may_be_empty)
    return to_numpy(parts.numerator * softmax.reciprocal(parts.denominator, may_be_empty)), parts


def test_weights_are_shares_of_the_exponentials():
    weights, parts = weights_of(LOGITS)
    np.testing.assert_allclose(weights, [[1 / 8, 2 / 8, 5 / 8], [3 / 8, 1 / 8, 4 / 8]], **CLOSE)
    np.testing.assert_allclose(to_numpy(parts.row_max), np.log([[5], [4]]), **CLOSE)
    np.testing.assert_allclose(to_numpy(parts.denominator), [[8 / 5], [8 / 4]], **CLOSE)


def test_a_sink_takes_its_share_and_gives_nothing():
    for size in (2.0, 12.0):  # smaller and larger than the largest exponential of a key
        sink = tensor(np.log([[size]]))
        weights, parts = weights_of(LOGITS, sink)
        np.testing.assert_allclose(weights, np.exp(LOGITS) / (8 + size), **CLOSE)
        largest = np.maximum([[5], [4]], size)
        np.testing.assert_allclose(to_numpy(parts.row_max), np.log(largest), **CLOSE)


def test_large_logits_do_not_overflow():
    weights, _ = weights_of(LOGITS + 1e4)
    np.testing.assert_allclose(weights, np.exp(LOGITS) / 8, rtol=2e-3)


def test_a_row_without_keys_is_zero_with_and_without_a_sink():
    mask = np.array([[True, False, True], [False, False, False]])
    logits = softmax.mask_logits(tensor(LOGITS), tensor(mask))
    weights, parts = weights_of(to_numpy(logits), may_be_empty=True)
    np.testing.assert_allclose(weights, [[1 / 6, 0, 5 / 6], [0, 0, 0]], **CLOSE)
    assert to_numpy(parts.row_max)[1] == 0.0
    weights, parts = weights_of(to_numpy(logits), tensor(np.log([[2.0]])), may_be_empty=True)
    np.testing.assert_allclose(weights, [[1 / 8, 0, 5 / 8], [0, 0, 0]], **CLOSE)
    np.testing.assert_allclose(to_numpy(parts.denominator)[1], 1.0, **CLOSE)


def test_no_keys_at_all():
    weights, parts = weights_of(np.zeros((2, 3, 0)), may_be_empty=True)
    assert weights.shape == (2, 3, 0)
    np.testing.assert_array_equal(to_numpy(parts.denominator), np.zeros((2, 3, 1)))


def test_a_mask_may_broadcast_and_none_masks_nothing_out():
    logits = tensor(LOGITS)
    assert softmax.mask_logits(logits, None) is logits
    found = to_numpy(softmax.mask_logits(logits, tensor(np.array([[True], [False]]))))
    np.testing.assert_allclose(found[0], LOGITS[0], **CLOSE)
    assert (found[1] == -math.inf).all()


def test_a_cap_and_its_derivative():
    logits = np.array([-40.0, -1.0, 0.0, 0.3, 2.0, 40.0])
    capped = softmax.cap(tensor(logits), 3.0)
    np.testing.assert_allclose(to_numpy(capped), 3 * np.tanh(logits / 3), **CLOSE)
    found = to_numpy(softmax.cap_gradient(capped, 3.0))
    np.testing.assert_allclose(found, 1 / np.cosh(logits / 3) ** 2, **CLOSE)
    x = tensor(logits)
    assert softmax.cap(x, None) is x
    assert softmax.cap_gradient(x, None) == 1.0
