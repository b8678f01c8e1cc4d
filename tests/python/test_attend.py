"""Every way of computing attention against the float64 reference, and the public function."""

import numpy as np
import pytest
from backends import tensor, value_and_gradients
from problems import (
    PROBLEMS,
    SMALL_BLOCK,
    block_size,
)

# float32 against float64: outputs are of size 1, gradients sum over a few hundred terms.
CLOSE = {"rtol": 1e-5, "atol": 5e-6}


def upstream_of(given, seed=6):
    b, t, n, _ = given.query.shape
    return np.random.default_rng(seed).normal(size=(b, t, n, given.value.shape[3]))


def check(given, **options):
    """Output and gradients of ours against the reference."""
    upstream = upstream_of(given)
    inputs = {name: tensor(x) for name, x in given.trainable().items()}

    def attend(**values):
        found = given.attend(**values, **options)
        return found if isinstance(found, tuple) else (found,)

    (output, *scores), gradients = value_and_gradients(attend, inputs, tensor(upstream))
    expected_output, weights = given.expected()
    np.testing.assert_allclose(output, expected_output, **CLOSE)
    if scores:
        # The weights before dropout.
        np.testing.assert_allclose(scores[0], weights, **CLOSE)
    expected = given.expected_gradients(upstream)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(
            gradient, expected[name].reshape(gradient.shape), **CLOSE, err_msg=f"d {name}"
        )


@pytest.mark.parametrize("name", PROBLEMS)
def test_plain_and_scores(name):
    check(PROBLEMS[name], implementation="plain", return_scores=True)


@pytest.mark.parametrize("name", PROBLEMS)
def test_blocked(name):
    with block_size(SMALL_BLOCK):
        check(PROBLEMS[name], implementation="blocked")


@pytest.mark.parametrize("size", [1, 7, 13, 64])
def test_block_sizes(size):
    with block_size(size):
        check(PROBLEMS["all at once"], implementation="blocked")
