"""What blocks of a bias have in common is computed once, and changes no number."""

import numpy as np
import pytest

from backends import BACKEND, tensor, to_numpy
from kerasattention.attend.bias import SumOfBiases, TensorBias
from kerasattention.attend.mask import AttentionMask
from kerasattention.attend.shared_products import fold_shared_gradients, with_shared_products
from kerasattention.attend.tensors import Span
from kerasattention.positions.key_bias import KeyBias

B, T, S, N, H, M = 2, 11, 13, 3, 4, 2
GENERATOR = np.random.default_rng(5)
ENTRIES = tuple(range(2 * M + 1))


def drawn(*shape):
    return tensor(GENERATOR.normal(size=shape).astype("float32"))


def both_biases(heads):
    key_bias = KeyBias(
        drawn(B, T, N, H),
        drawn(len(ENTRIES), heads, H),
        ENTRIES,
        0.7,
        key=drawn(B, S, N, H),
        key_table=drawn(len(ENTRIES), heads, H),
        sees_keys=True,
    )
    return SumOfBiases((TensorBias(drawn(1, N, T, S)), key_bias))


@pytest.mark.parametrize("heads", [1, N])
@pytest.mark.parametrize(("first", "size"), [(0, 4), (4, 3), (10, 1), (0, T)])
def test_blocks_and_gradients_are_the_same(heads, first, size):
    bias, mask, rows, columns = both_biases(heads), AttentionMask(), Span(first, size), Span(0, S)
    shared = with_shared_products(bias, mask)
    # JAX's tiles lie anywhere, and have nothing to share.
    further = [] if BACKEND == "jax" else ["1/far"]
    assert sorted(shared.differentiable()) == sorted([*bias.differentiable(), *further])
    expected = to_numpy(bias.block(mask, rows, columns))
    np.testing.assert_allclose(
        to_numpy(shared.block(mask, rows, columns)), expected, rtol=1e-5, atol=1e-5
    )
    upstream = drawn(B, N, size, S)
    expected = bias.block_gradient(upstream, mask, rows, columns)
    found = shared.block_gradient(upstream, mask, rows, columns)
    found = fold_shared_gradients(shared, found)
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        np.testing.assert_allclose(
            to_numpy(found[name]), to_numpy(x), rtol=1e-4, atol=1e-4, err_msg=name
        )


def test_positions_that_are_given_share_nothing():
    bias = both_biases(1)
    given = {"query_positions": tensor(np.arange(T)), "key_positions": tensor(np.arange(S))}
    shared = with_shared_products(bias, AttentionMask(**given))
    assert shared.differentiable() == bias.differentiable()
    gradients = {"0/attention_bias": drawn(1)}
    assert list(fold_shared_gradients(shared, gradients)) == list(gradients)
