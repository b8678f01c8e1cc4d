"""The sublayers of projections, which are as precise as their dtype."""

import keras
import numpy as np
import pytest

import kerasattention
from backends import tensor, to_numpy
from kerasattention.layers.projection import WideProjection, projection

B, T, D, N, H = 2, 5, 3, 4, 6


def made(dtype, **options):
    dense = projection(
        "abc,cde->abde",
        dtype=dtype,
        output_shape=(None, N, H),
        bias_axes="de",
        bias_initializer="random_normal",
        **options,
    )
    dense.build((B, T, D))
    return dense


@pytest.mark.parametrize("activation", [None, "sigmoid"])
def test_a_projection_in_float64(activation, doubles):
    dense = made("float64", activation=activation)
    x = np.random.default_rng(0).normal(size=(B, T, D))
    kernel, bias = (to_numpy(weight) for weight in dense.weights)
    expected = np.einsum("abc,cde->abde", x, kernel) + bias
    expected = expected if activation is None else 1 / (1 + np.exp(-expected))
    found = to_numpy(dense(tensor(x, "float64")))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    dense.enable_lora(2)
    dense.lora_kernel_b.assign(0.1 * np.ones(dense.lora_kernel_b.shape))
    assert np.abs(to_numpy(dense(tensor(x, "float64"))) - found).max() > 1e-3


def test_only_projections_in_float64_are_of_another_class(doubles):
    assert isinstance(made("float64"), WideProjection)
    mixed = keras.dtype_policies.DTypePolicy("mixed_float16")
    for dtype in (None, "float32", "bfloat16", mixed):
        assert type(made(dtype)) is keras.layers.EinsumDense


def test_layers_of_float64_have_them(doubles):
    layer = kerasattention.MultiHeadAttention(N, H, use_gate=True, dtype="float64")
    layer.build((B, T, D), (B, T, D))
    kinds = [type(part) for part in layer._flatten_layers() if hasattr(part, "equation")]
    assert kinds == [WideProjection] * 5
