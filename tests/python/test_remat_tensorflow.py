"""Dropout under TensorFlow's `recompute_grad()`: in graphs, in one another, by name."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from backends import tensor, to_numpy
from test_remat import X, input_gradient, made


def blocks(run):
    layers = [made(), made()]

    def inner(x):
        return x + layers[0](x, training=True)

    def outer(x):
        return layers[1](run(inner)(run(inner)(x)), training=True)

    return run(outer)


@pytest.mark.parametrize("graph", [False, True])
def test_functions_in_one_another(graph):
    def gradient(run):
        function = blocks(run)
        if not graph:
            return input_gradient(function)

        @tf.function
        def traced(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                loss = tf.reduce_sum(tf.square(function(x)))
            return tape.gradient(loss, x)

        return to_numpy(traced(tensor(X)))

    np.testing.assert_allclose(gradient(keras.remat), gradient(lambda f: f), rtol=1e-5, atol=1e-5)


def test_a_gradient_of_a_graph_taken_outside():
    def gradients(run):
        function = tf.function(blocks(run))
        return [input_gradient(function) for _ in range(2)]

    first, second = gradients(keras.remat)
    expected = gradients(lambda f: f)
    np.testing.assert_allclose([first, second], expected, rtol=1e-5, atol=1e-5)
    assert np.abs(first - second).max() > 0.1


def test_tensors_by_name_are_refused():
    layer = made()
    function = keras.remat(lambda query: layer(query, training=True))
    with pytest.raises(RuntimeError, match="by position"):
        function(query=tensor(X))
