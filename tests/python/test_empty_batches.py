"""Batches of no rows, and masks whose axes TensorFlow does not know while it traces."""

import numpy as np
import pytest

from backends import BACKEND, to_numpy
from kerasattention import MultiHeadAttention

OPTIONS = {
    "plain": {"flash_attention": False},
    "chosen": {},
    "cap": {"logit_soft_cap": 5.0},
    "sink": {"attention_sink": True, "flash_attention": False},
    "window": {"sliding_window": 2},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_batch_of_no_rows(name):
    layer = MultiHeadAttention(2, 3, **OPTIONS[name])
    x = np.zeros((0, 5, 7), "float32")
    output, scores = layer(x, x, attention_mask=np.tri(5, dtype=bool), return_attention_scores=True)
    assert tuple(output.shape) == (0, 5, 7)
    assert tuple(scores.shape) == (0, 2, 5, 5)
    assert tuple(layer(x, x).shape) == (0, 5, 7)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="axes are unknown on TensorFlow alone")
@pytest.mark.parametrize("shape", [(2, 2, 5, 5), (1, 1, 5, 5), (2, 1, 1, 5), (1, 2, 5, 1)])
def test_a_mask_of_unknown_axes(shape):
    import tensorflow as tf

    layer = MultiHeadAttention(2, 3)
    layer.build((None, None, 7), (None, None, 7))
    signature = [tf.TensorSpec([None, None, 7]), tf.TensorSpec([None] * 4, tf.bool)]
    traced = tf.function(lambda x, m: layer(x, x, attention_mask=m), input_signature=signature)
    rng = np.random.default_rng(3)
    x, mask = rng.normal(size=(2, 5, 7)).astype("float32"), rng.random(shape) < 0.6
    expected = layer(x, x, attention_mask=np.broadcast_to(mask, (2, 2, 5, 5)))
    found = traced(x, mask)
    np.testing.assert_allclose(to_numpy(found), to_numpy(expected), rtol=1e-5, atol=1e-6)
