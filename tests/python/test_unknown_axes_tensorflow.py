"""Masks whose axes, and lengths, TensorFlow does not know while it traces."""

import numpy as np
import pytest
import tensorflow as tf

from backends import to_numpy
from kerasattention import MultiHeadAttention, scaled_dot_product_attention


@pytest.mark.parametrize("shape", [(2, 2, 5, 5), (1, 1, 5, 5), (2, 1, 1, 5), (1, 2, 5, 1)])
def test_a_mask_of_unknown_axes(shape):
    layer = MultiHeadAttention(2, 3)
    layer.build((None, None, 7), (None, None, 7))
    signature = [tf.TensorSpec([None, None, 7]), tf.TensorSpec([None] * 4, tf.bool)]
    traced = tf.function(lambda x, m: layer(x, x, attention_mask=m), input_signature=signature)
    rng = np.random.default_rng(3)
    x, mask = rng.normal(size=(2, 5, 7)).astype("float32"), rng.random(shape) < 0.6
    expected = layer(x, x, attention_mask=np.broadcast_to(mask, (2, 2, 5, 5)))
    found = traced(x, mask)
    np.testing.assert_allclose(to_numpy(found), to_numpy(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["nothing", "causal window", "mask", "sink"])
def test_lengths_that_turn_out_to_be_zero(name):
    options = {
        "causal window": {"causal": True, "sliding_window": 2},
        "sink": {"sink": tf.ones(6)},
    }.get(name, {})
    signature = [
        *(tf.TensorSpec([None, None, heads, size]) for heads, size in ((6, 3), (3, 3), (3, 7))),
        tf.TensorSpec([None, 1, None, None], tf.bool),
    ]

    @tf.function(input_signature=signature, autograph=False)
    def run(query, key, value, mask):
        given = options | ({"attention_mask": mask} if name == "mask" else {})
        inputs = [query, key, value]
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            output = scaled_dot_product_attention(*inputs, **given)
        return output, tape.gradient(output, inputs)

    for T, S in ((0, 5), (3, 0), (0, 0)):
        shapes = ((2, T, 6, 3), (2, S, 3, 3), (2, S, 3, 7))
        output, gradients = run(
            *(np.ones(x, "float32") for x in shapes), np.ones((2, 1, T, S), bool)
        )
        assert output.shape == (2, T, 6, 7)
        assert not to_numpy(output).any()
        assert [tuple(x.shape) for x in gradients] == list(shapes)
        assert not any(to_numpy(x).any() for x in gradients)
