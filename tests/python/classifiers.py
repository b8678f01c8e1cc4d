"""A small classifier of attention layers, for the tests of the tools for whole models."""

import keras
import numpy as np

from backends import JIT
from kerasattention import GroupQueryAttention, MultiHeadAttention

VOCABULARY, T, D, CLASSES = 13, 7, 22, 3
KERAS_MHA = keras.layers.MultiHeadAttention
KERAS_LAYERS = (KERAS_MHA, keras.layers.GroupQueryAttention)


def classifier(make, depth=2, pooled=True):
    """A small transformer of attention layers that `make` gives, as a compiled model."""
    keras.utils.set_random_seed(5)
    tokens = keras.Input((T,), dtype="int32")
    x = keras.layers.Embedding(VOCABULARY, D, mask_zero=True)(tokens)
    for index in range(depth):
        layer = make(name=f"attention_{index}")
        y = layer(x, x) if isinstance(layer, KERAS_LAYERS) else layer(x)
        x = keras.layers.Add()([x, y])
    if pooled:
        x = keras.layers.GlobalAveragePooling1D()(x)
    model = keras.Model(tokens, keras.layers.Dense(CLASSES)(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, jit_compile=JIT)
    return model


def mha(**options):
    return MultiHeadAttention(5, 4, bias_initializer="random_normal", **options)


def gqa(**options):
    return GroupQueryAttention(3, 6, 2, bias_initializer="random_normal", **options)


def keras_mha(**options):
    return KERAS_MHA(5, 4, bias_initializer="random_normal", **options)


def keras_gqa(**options):
    return keras.layers.GroupQueryAttention(3, 6, 2, bias_initializer="random_normal", **options)


def nested(make):
    """A model of two models, whose attention layers have one name: "attention_0"."""
    parts = []
    for _ in range(2):
        x = keras.Input((T, D))
        parts.append(keras.Model(x, x + make(name="attention_0")(x)))
    tokens = keras.Input((T,), dtype="int32")
    x = keras.layers.Embedding(VOCABULARY, D)(tokens)
    x = keras.layers.GlobalAveragePooling1D()(parts[1](parts[0](x)))
    model = keras.Model(tokens, keras.layers.Dense(CLASSES)(x))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def tokens_and_classes():
    """Inputs (5, T) with padding in the first row, and a class for each."""
    random = np.random.default_rng(3)
    x = random.integers(1, VOCABULARY, (5, T))
    x[0, 5:] = 0
    return x, random.integers(0, CLASSES, 5)
