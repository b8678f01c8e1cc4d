"""What a layer asks of the engine, and which inputs it examines for NaN."""

import keras
import numpy as np
import pytest

from backends import tensor, to_numpy
from kerasattention import GroupQueryAttention, MultiHeadAttention
from kerasattention.layers import attending

B, T, S, D = 2, 3, 11, 7
X = np.random.default_rng(3).normal(size=(B, T, D)).astype("float32")


@pytest.mark.parametrize("by_keras", [True, False])
@pytest.mark.parametrize("own", [None, True, False])
def test_flash_attention_decides_whether_scores_may_be_held(monkeypatch, own, by_keras):
    """The layer's value first; Keras's switch can only forbid."""
    asked = []
    attend = attending.attend

    def noted(*args, **kwargs):
        asked.append((kwargs["implementation"], kwargs["never_hold_scores"]))
        return attend(*args, **kwargs)

    monkeypatch.setattr(attending, "attend", noted)
    enabled = keras.config.is_flash_attention_enabled()
    (keras.config.enable_flash_attention if by_keras else keras.config.disable_flash_attention)()
    try:
        layer = MultiHeadAttention(2, 5, flash_attention=own)
        layer(tensor(X), tensor(X))
    finally:
        if enabled is not False:
            keras.config.enable_flash_attention()
    forbidden = own is False or (own is None and not by_keras)
    assert asked == [("plain" if forbidden else None, own is True)]


@pytest.mark.parametrize("key_last", [True, False])
def test_keys_beyond_a_window_are_those_of_the_keys_length(key_last):
    """Queries 0 to 2 see keys up to 5: none of 3 keys is masked out, but some of 11 are."""
    layer = GroupQueryAttention(4, 6, 2, sliding_window=4)
    source = np.random.default_rng(4).normal(size=(B, S, D)).astype("float32")
    layer(tensor(X), tensor(source))
    poisoned = source.copy()
    poisoned[:, -1 if key_last else slice(6, None)] = np.nan
    expected = to_numpy(layer(tensor(X), tensor(source)))
    np.testing.assert_array_equal(to_numpy(layer(tensor(X), tensor(poisoned))), expected)


def test_dropout_is_for_training_alone():
    layer = MultiHeadAttention(2, 5, dropout=0.7, seed=3)
    plain = to_numpy(layer(tensor(X), tensor(X)))
    for training in (None, False):
        found = to_numpy(layer(tensor(X), tensor(X), training=training))
        np.testing.assert_array_equal(found, plain)
    assert abs(to_numpy(layer(tensor(X), tensor(X), training=True)) - plain).max() > 0.01


def test_a_bias_of_two_attended_axes_is_that_of_the_folded_length():
    """(B, 2, 3, D) attends along both axes as (B, 6, D) does along one."""
    x = np.random.default_rng(5).normal(size=(B, 2, 3, D)).astype("float32")
    bias = np.random.default_rng(6).normal(size=(1, 2, 6, 6))
    layer, flat = (MultiHeadAttention(2, 5, attention_axes=axes) for axes in ((1, 2), None))
    layer.build(x.shape)
    flat.build((B, 6, D))
    flat.set_weights(layer.get_weights())
    found = layer(tensor(x), attention_bias=tensor(bias.reshape(1, 2, 2, 3, 2, 3)))
    expected = flat(tensor(x.reshape(B, 6, D)), attention_bias=tensor(bias))
    np.testing.assert_allclose(
        to_numpy(found).reshape(B, 6, D), to_numpy(expected), rtol=1e-5, atol=1e-6
    )
