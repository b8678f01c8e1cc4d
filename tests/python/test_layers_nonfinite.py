"""Projections of tokens that are not finite, by numbers worked out with NumPy."""

import numpy as np
import pytest
from keras import ops

from backends import tensor, to_numpy
from kerasattention.attend.mask import AttentionMask
from kerasattention.layers.nonfinite import Projector, choose_projector

B, T, D, M = 2, 5, 3, 7
RNG = np.random.default_rng(1)
X = RNG.normal(size=(B, T, D)).astype("float32")
X[0, 1, 2], X[1, 4, 0] = np.nan, np.inf
KERNEL = RNG.normal(size=(D, M)).astype("float32")
CLEAN = np.where(np.isfinite(X), X, 0.0)
BAD = ~np.isfinite(X).all(-1)  # (B, T)


def times_kernel(x):
    return ops.matmul(x, tensor(KERNEL))


@pytest.mark.parametrize("finite", [False, None])
def test_results_of_tokens_that_are_not_finite_are_nan(finite):
    found = to_numpy(Projector(finite).project(times_kernel, tensor(X)))
    expected = np.where(BAD[..., None], np.nan, CLEAN @ KERNEL)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("split", [False, True])
def test_padding_is_projected_from_zeros(split):
    real = np.ones((B, T), bool)
    real[0, 1] = False
    projector = Projector(False)
    found = projector.project(
        times_kernel, tensor(X), lambda: tensor(real), features_are_split=split
    )
    expected = np.where((BAD & real)[..., None], np.nan, CLEAN @ KERNEL)
    np.testing.assert_allclose(to_numpy(found), expected, rtol=1e-5, atol=1e-6)


def test_features_of_two_axes_and_heads():
    """(B, 5) tokens of (1, 3) features become heads of (7, 2)."""
    kernel = RNG.normal(size=(D, M, 2)).astype("float32")
    found = Projector(False).project(
        lambda x: ops.tensordot(x[:, :, 0], tensor(kernel), 1), tensor(X[:, :, None]), features=2
    )
    expected = np.where(BAD[..., None, None], np.nan, np.tensordot(CLEAN, kernel, 1))
    np.testing.assert_allclose(to_numpy(found), expected, rtol=1e-5, atol=1e-6)


def test_nothing_is_done_where_all_inputs_are_known_to_be_finite():
    given = []
    x = tensor(X)
    assert Projector().project(lambda x: given.append(x) or x, x) is x
    assert given[0] is x
    assert Projector().clean(x) is x
    np.testing.assert_array_equal(to_numpy(Projector(False).clean(x)), CLEAN)


def test_one_input_that_is_not_finite_decides():
    clean, x = tensor(CLEAN), tensor(X)
    assert Projector.of(clean, clean, clean).finite is True
    for inputs in ((x, clean, clean), (clean, x, clean), (clean, clean, x)):
        assert Projector.of(*inputs).finite is False


@pytest.mark.parametrize(
    ("mask", "bias", "expected"),
    [
        ({}, None, True),
        ({}, np.zeros((1, 1, T, T)), False),  # may be minus infinity
        ({"causal": True}, None, False),
        ({"query_mask": np.ones((B, T), bool)}, None, False),
        ({"key_mask": np.ones((B, T), bool)}, None, False),
    ],
    ids=["nothing", "bias", "causal", "queries", "keys"],
)
def test_inputs_are_searched_where_a_token_may_be_masked_out(mask, bias, expected):
    fields = {name: tensor(x) if isinstance(x, np.ndarray) else x for name, x in mask.items()}
    bias = None if bias is None else tensor(bias)
    found = choose_projector((tensor(X),) * 3, AttentionMask(**fields), bias, T, T)
    assert found.finite is expected


def test_a_causal_rule_that_masks_out_no_query_needs_no_search():
    """A query after all keys sees all of them, whatever the rule."""
    found = choose_projector((tensor(X),), AttentionMask(causal=True, offset=T), None, 1, T)
    assert found.finite is True
    found = choose_projector((tensor(X),), AttentionMask(causal=True), None, 2, 1)
    assert found.finite is True
    found = choose_projector((tensor(X),), AttentionMask(causal=True), None, 1, 2)
    assert found.finite is False
