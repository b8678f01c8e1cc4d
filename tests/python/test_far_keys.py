"""Products of keys with the relative queries of the farthest distances, by hand."""

import numpy as np
import pytest

from backends import tensor, to_numpy
from kerasattention.attend.tensors import Span
from kerasattention.positions import far_keys

B, S, N, H = 2, 5, 3, 4
GENERATOR = np.random.default_rng(11)
KEY = GENERATOR.normal(size=(B, S, N, H)).astype("float32")
OF_PRODUCTS = GENERATOR.normal(size=(B, S, N, 2)).astype("float32")


@pytest.mark.parametrize("heads", [1, N])
def test_products_and_their_gradients(heads):
    rows = GENERATOR.normal(size=(2, heads, H)).astype("float32")
    wide = np.broadcast_to(rows, (2, N, H))
    found = to_numpy(far_keys.far_products(tensor(KEY), tensor(rows)))
    expected = np.stack([(KEY * wide[side]).sum(-1) for side in (0, 1)], axis=-1)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)

    found = to_numpy(far_keys.key_gradient(tensor(OF_PRODUCTS), tensor(rows)))
    expected = sum(OF_PRODUCTS[..., side, None] * wide[side] for side in (0, 1))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)

    found = to_numpy(far_keys.rows_gradient(tensor(OF_PRODUCTS), tensor(KEY), heads))
    expected = [(OF_PRODUCTS[..., side, None] * KEY).sum((0, 1)) for side in (0, 1)]
    if heads == 1:
        expected = [x.sum(0, keepdims=True) for x in expected]
    np.testing.assert_allclose(found, np.stack(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("side", "place"), [(-1, 0), (1, 1)])
def test_a_block_has_the_products_of_its_side(side, place):
    columns = Span(1, 3)
    found = to_numpy(far_keys.of_block(tensor(OF_PRODUCTS), columns, side))
    assert found.shape == (B, N, 1, 3)
    np.testing.assert_array_equal(found[:, :, 0], OF_PRODUCTS[:, 1:4, :, place].swapaxes(1, 2))

    of_pairs = GENERATOR.normal(size=(B, N, 7, 3)).astype("float32")
    found = to_numpy(far_keys.gradient_of_block(tensor(of_pairs), side))
    assert found.shape == (B, 3, N, 2)
    np.testing.assert_allclose(
        found[..., place], of_pairs.sum(2).swapaxes(1, 2), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_array_equal(found[..., 1 - place], 0)
