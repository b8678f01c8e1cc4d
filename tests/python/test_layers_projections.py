"""The projections that a layer makes, by name, and their initializers."""

import keras
import numpy as np
import pytest

from backends import to_numpy
from kerasattention import GroupQueryAttention, MultiHeadAttention
from kerasattention.layers.projections import PROJECTIONS
from layer_reference import attention_layer

B, T, D = 2, 5, 7


def built(**options):
    layer = GroupQueryAttention(4, 6, 2, **options)
    layer.build((B, T, D))
    return layer


def test_projections_are_found_by_name():
    layer, gated = built(), built(use_gate=True)
    assert list(layer.projections()) == ["query", "key", "value", "output"]
    assert tuple(gated.projections()) == PROJECTIONS
    assert layer.projection("gate") is None
    assert gated.projection("output").name == "attention_output"
    assert all(gated.projection(name) is dense for name, dense in gated.projections().items())


def test_vectors_are_those_of_the_options():
    assert built().vectors() == {}
    vectors = built(qk_norm=True, attention_sink=True).vectors()
    assert {name: tuple(x.shape) for name, x in vectors.items()} == {
        "sink": (6,),
        "query_norm": (4,),
        "key_norm": (4,),
    }


def test_a_seeded_initializer_gives_each_kernel_other_numbers():
    seeded = keras.initializers.RandomNormal(seed=3)
    kernels = [to_numpy(x.kernel) for x in built(kernel_initializer=seeded).projections().values()]
    again = [to_numpy(x.kernel) for x in built(kernel_initializer=seeded).projections().values()]
    for kernel, same in zip(kernels, again, strict=True):
        np.testing.assert_array_equal(kernel, same)
    firsts = [kernel.ravel()[:20] for kernel in kernels]
    for i, first in enumerate(firsts):
        assert not any(np.array_equal(first, other) for other in firsts[i + 1 :])


def test_sizes_that_no_memory_holds_are_refused_before_a_kernel_is_made():
    layer = MultiHeadAttention(2, 3, output_shape=2**30)
    with pytest.raises(ValueError, match="The kernel of `attention_output` may have at most"):
        layer.build((B, T, D))
    assert layer.weights == []


def test_a_frozen_layer_makes_frozen_projections():
    layer = built(trainable=False)
    assert layer.trainable_weights == []
    assert not any(dense.trainable for dense in layer.projections().values())


# TensorFlow's `keras.ops.add()` takes a bias (N, 1) for one of channels where axis 1 has N sizes.
@pytest.mark.parametrize(
    ("head_size", "heads", "output_shape", "length"),
    [(1, 3, None, 3), (1, 5, (3, 1), 5), (2, 5, (3, 1), 3), (1, 3, None, (3, 2))],
)
def test_biases_go_to_their_heads_where_a_length_is_the_number_of_heads(
    head_size, heads, output_shape, length
):
    layer = MultiHeadAttention(
        heads,
        head_size,
        use_gate=True,
        output_shape=output_shape,
        bias_initializer=keras.initializers.RandomNormal(seed=1),
    )
    length = length if isinstance(length, tuple) else (length,)
    x = np.random.default_rng(2).normal(size=(B, *length, D)).astype("float32")
    outputs = layer(x)
    weights = {
        f"{dense.name}/{kind}": to_numpy(getattr(dense, kind)).astype("float64")
        for dense in layer.projections().values()
        for kind in ("kernel", "bias")
    }
    expected, _ = attention_layer(weights, x.astype("float64"))
    np.testing.assert_allclose(to_numpy(outputs), expected, rtol=1e-5, atol=1e-5)
