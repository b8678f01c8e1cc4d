"""Layers that mix tokens, far back or for some ids only, are refused by the trial."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import kerasattention as ka
from decoding_models import FEATURES, VOCABULARY, attending, embedded


def shifted(steps):
    def mix(x):
        return x + ops.pad(x, [(0, 0), (steps, 0), (0, 0)])[:, : ops.shape(x)[1]]

    return lambda tokens, x: layers.Lambda(mix, name="culprit")(x)


def counted(count):
    def add(tokens, x):
        ids = layers.Lambda(count, name="culprit")(tokens)
        return x + layers.Embedding(8, FEATURES)(ids)

    return add


def seen(tokens):
    return ops.cast(tokens == 5, "int32")


def repeated(tokens):
    """1 where a token is the one six before it."""
    earlier = ops.pad(tokens, [(0, 0), (6, 0)], constant_values=-1)[:, : ops.shape(tokens)[1]]
    return ops.cast(ops.equal(tokens, earlier), "int32")


def drawn(generator):
    """A layer that changes a variable which it does not hold: Lambda keeps no track of it."""
    return layers.Lambda(lambda x: x + keras.random.normal((), seed=generator), name="culprit")


MIXING = {
    "the id of six tokens before": counted(repeated),
    "the token before": shifted(1),
    "six tokens before": shifted(6),
    "thirty tokens before": shifted(30),
    "a running count of an id": counted(lambda t: ops.minimum(ops.cumsum(seen(t), axis=1), 7)),
    "whether an id has come": counted(lambda t: ops.cast(ops.cumsum(seen(t), axis=1) > 0, "int32")),
    "a running sum": counted(lambda t: ops.cumsum(t, axis=1) % 8),
    "a random number": lambda tokens, x: layers.Lambda(
        lambda y: y + np.random.default_rng().normal(), name="culprit"
    )(x),
    "a random number of a generator": lambda tokens, x: drawn(keras.random.SeedGenerator(3))(x),
}


@pytest.mark.parametrize("name", MIXING)
def test_what_mixes_tokens_is_refused_by_name(name):
    tokens, x = embedded()
    x = attending()(MIXING[name](tokens, x))
    model = keras.Model(tokens, layers.Dense(VOCABULARY)(x))
    with pytest.raises(ValueError, match="'culprit' cannot be decoded token by token"):
        ka.IncrementalDecoder(model, 1, 40)


@keras.saving.register_keras_serializable("test_decode_trials")
class Wrapped(layers.Layer):
    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def call(self, x):
        return x + self.attention(x)


def test_a_trial_is_no_longer_than_the_length_that_a_scaling_allows():
    """Beyond it all keys are rotated anew, so that a longer trial would prove nothing."""
    scaling = {"type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 16}
    position = ka.RotaryPosition(scaling=scaling)
    attention = ka.MultiHeadAttention(2, 6, use_causal_mask=True, position=position)
    tokens, x = embedded()
    model = keras.Model(tokens, layers.Dense(VOCABULARY)(Wrapped(attention)(x)))
    made = ka.generate(model, np.array([[1, 2, 3]]), 6)
    # Up to 16 tokens the scaling does not depend on their number: one pass shows every choice.
    full = keras.ops.convert_to_numpy(model(made))
    np.testing.assert_array_equal(full[0, 2:8].argmax(-1), made[0, 3:])
