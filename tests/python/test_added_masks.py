"""Masks of numbers that are added to logits elsewhere are refused, as are biases of booleans."""

import numpy as np
import pytest
from keras import ops

from backends import BACKEND, to_numpy
from kerasattention import GroupQueryAttention, scaled_dot_product_attention
from kerasattention.layers.inputs import MASKS

CAUSAL = np.tril(np.ones((5, 5), "float32"))


@pytest.mark.parametrize("made", [np.asarray, ops.convert_to_tensor], ids=["array", "tensor"])
@pytest.mark.parametrize("name", MASKS)
def test_masks_to_be_added_to_logits_are_refused(name, made):
    layer, x = GroupQueryAttention(4, 2, 2), np.ones((2, 5, 3), "float32")
    shown = CAUSAL if name == "attention_mask" else CAUSAL[[2, 4]]
    assert layer(x, **{name: made(shown)}).shape == (2, 5, 3)
    for least in (-np.inf, -1e9, -1e4):
        added = np.where(shown > 0, 0, least).astype("float32")
        with pytest.raises(ValueError, match=f"`{name}` must be True and False, or 1 and 0"):
            layer(x, **{name: made(added)})


def test_the_function_refuses_them_and_a_bias_of_booleans():
    x = np.random.default_rng(1).normal(size=(2, 5, 1, 4)).astype("float32")
    for mask in (np.where(CAUSAL > 0, 0, -np.inf), np.where(CAUSAL > 0, 0, -10000)):
        with pytest.raises(ValueError, match="`attention_mask` must be True and False"):
            scaled_dot_product_attention(x, x, x, attention_mask=mask)
    with pytest.raises(ValueError, match="`attention_bias` is added to the logits"):
        scaled_dot_product_attention(x, x, x, attention_bias=CAUSAL > 0)


def test_compiled_functions_take_masks_of_numbers():
    x = np.random.default_rng(1).normal(size=(2, 5, 1, 4)).astype("float32")

    def attend(mask):
        return scaled_dot_product_attention(x, x, x, attention_mask=mask)

    mask, compiled = ops.convert_to_tensor(CAUSAL), attend
    if BACKEND == "jax":
        import jax

        compiled = jax.jit(attend)
    elif BACKEND == "tensorflow":
        import tensorflow as tf

        compiled = tf.function(attend)
    expected = to_numpy(scaled_dot_product_attention(x, x, x, causal=True))
    np.testing.assert_allclose(to_numpy(compiled(mask)), expected, rtol=1e-5, atol=1e-6)
