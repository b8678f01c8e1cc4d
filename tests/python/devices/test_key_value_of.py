"""Layers that use the keys and values of another layer, whose heads are split over devices."""

import keras
import numpy as np
from models import WIDTH, WORDS, tokens, trained

import kerasattention as ka
from kerasattention import HeadParallel, check_sharding, with_distribution


def decoder(key_value=2):
    keras.utils.set_random_seed(3)
    given = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(WORDS, WIDTH, name="tok")(given)
    options = {"use_causal_mask": True, "position": ka.RotaryPosition()}
    keys_only = key_value == 2
    first = ka.GroupQueryAttention(
        *(4, 8, key_value), name="first", use_key_as_value=keys_only, **options
    )
    x = keras.layers.Add()([x, first(x)])
    second = ka.GroupQueryAttention(4, 8, key_value, name="second", key_value_of=first, **options)
    x = keras.layers.Add()([x, second(x)])
    model = keras.Model(given, keras.layers.Dense(WORDS, name="head")(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss)
    return model


def test_numbers_and_tokens_are_those_of_one_device():
    x, _ = tokens(8)
    for key_value in (8, 2):
        whole = decoder(key_value)
        made = ka.generate(whole, x, 5)
        expected = trained(whole)
        with with_distribution(HeadParallel(4)):
            model = decoder(key_value)
            check_sharding(model)
            shared = ka.generate(model, x, 5)
            found = trained(model)
        np.testing.assert_array_equal(shared, made)
        for ours, theirs in zip(found[:2], expected[:2], strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
