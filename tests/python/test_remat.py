"""Dropout in calls that the backward pass computes again: the gradient has the output's dropout."""

from contextlib import nullcontext

import keras
import numpy as np
import pytest
from keras import ops

from backends import BACKEND, JIT, tensor, to_numpy
from kerasattention import GroupQueryAttention, MultiHeadAttention
from kerasattention._keras import get_keras_mask

X = np.random.default_rng(0).normal(size=(3, 5, 7)).astype("float32")
PADDED = np.arange(5) < np.array([[5], [3], [1]])


def built(layer, mode=None):
    with keras.RematScope(mode):
        layer.build(X.shape)
    rng = np.random.default_rng(2)
    for weight in layer.trainable_weights:
        weight.assign(0.3 * rng.normal(size=tuple(weight.shape)))
    return layer


def input_gradient(function, x=X):
    """The gradient of a sum of squares."""
    if BACKEND == "torch":
        leaf = tensor(x).requires_grad_(True)
        ops.sum(ops.square(function(leaf))).backward()
        return to_numpy(leaf.grad)
    if BACKEND == "jax":
        import jax

        def loss(x):
            with keras.StatelessScope():  # no tracer stays in a generator
                return ops.sum(ops.square(function(x)))

        return to_numpy(jax.jit(jax.grad(loss))(tensor(x)))
    import tensorflow as tf

    leaf = tensor(x)
    with tf.GradientTape() as tape:
        tape.watch(leaf)
        loss = ops.sum(ops.square(function(leaf)))
    return to_numpy(tape.gradient(loss, leaf))


TIMES = 1 if BACKEND == "jax" else 2  # JAX's generators stand still outside of fit()


def made(mode=None, **options):
    keras.utils.set_random_seed(1)
    with keras.RematScope(mode):
        layer = MultiHeadAttention(2, 4, dropout=0.5, seed=5, flash_attention=False, **options)
        return built(layer, mode)


def assert_the_same(found, expected):
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)
    if len(expected) > 1:  # each has dropout of its own
        assert np.abs(expected[0] - expected[1]).max() > 0.1


def test_remat_scope():
    """A mask given by name, then the same one that the first output carries."""

    def gradients(mode):
        layer = made(mode)

        def call(x):
            with keras.RematScope(mode):
                first = layer(x, training=True, query_mask=tensor(PADDED, "bool"))
                second = layer(first, training=True)
            assert get_keras_mask(first) is not None
            assert get_keras_mask(second) is not None
            return first + second

        return [input_gradient(call) for _ in range(TIMES)]

    assert_the_same(gradients("full"), gradients(None))


def test_scores_under_remat_scope():
    """Both results, with the mask on the first."""

    def call(mode):
        layer = made(mode)
        with keras.RematScope(mode):
            output, scores = layer(
                tensor(X), query_mask=tensor(PADDED, "bool"), return_attention_scores=True
            )
        assert get_keras_mask(output) is not None
        assert scores.shape == (3, 2, 5, 5)
        return to_numpy(output), to_numpy(scores)

    for found, expected in zip(call("full"), call(None), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_no_dropout_under_remat_scope_without_training():
    def call(mode, **options):
        layer = made(mode)
        with keras.RematScope(mode):
            return to_numpy(layer(tensor(X), **options))

    for options in ({}, {"training": False}):
        np.testing.assert_allclose(call("full", **options), call(None), rtol=1e-5, atol=1e-6)


def test_fit_under_remat_scope():
    """Weights too, in a graph."""

    def trained(mode):
        keras.utils.set_random_seed(1)
        inputs = keras.Input(X.shape[1:])
        with keras.RematScope(mode):
            layer = GroupQueryAttention(4, 6, 2, dropout=0.5, seed=5, attention_sink=True)
            outputs = layer(inputs)
        model = keras.Model(inputs, outputs)
        model.compile("sgd", "mse", jit_compile=JIT)
        model.fit(X, X, epochs=2, batch_size=3, verbose=0)
        return model.get_weights()

    for found, expected in zip(trained("full"), trained(None), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_keras_remat():
    """Two layers, one of them called twice."""

    def gradients(remat):
        layers = [made(), made(sliding_window=2)]

        def function(x):
            for layer in (*layers, layers[0]):
                x = x + layer(x, training=True)
            return x

        # A function of its own for each call: JAX traces one once.
        return [input_gradient(remat(lambda x: function(x))) for _ in range(TIMES)]

    with pytest.warns(UserWarning, match="traces") if BACKEND == "jax" else nullcontext():
        found = gradients(keras.remat)
    assert_the_same(found, gradients(lambda f: f))


def test_remat_scope_refuses_losses_without_a_gradient():
    layer = made("full", activity_regularizer="l2")
    with keras.RematScope("full"), pytest.raises(ValueError, match="activity_regularizer"):
        layer(tensor(X), training=True)
