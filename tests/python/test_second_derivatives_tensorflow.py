"""Gradients of gradients in TensorFlow's graphs, whose lengths may be unknown."""

import numpy as np
import pytest
import tensorflow as tf

from backends import double, to_numpy
from kerasattention import MultiHeadAttention, RelativePosition
from problems import SMALL_BLOCK, block_size
from test_second_derivatives import GIVEN, expected, second_order


@pytest.mark.parametrize(("known", "jit_compile"), [(True, False), (True, True), (False, False)])
def test_in_graphs_of_known_and_unknown_lengths(known, jit_compile):
    name = "all" if known else "padding and a sink"
    given = GIVEN[name]
    along, steps, differences = expected(name)
    along = {which: double(x) for which, x in along.items()}
    values = {which: double(x) for which, x in given.trainable().items()}
    values["upstream"] = double(given.upstream)
    function = second_order(given, "blocked", along)
    signature = None
    if not known:
        shapes = {which: list(x.shape) for which, x in values.items()}
        for which in ("query", "key", "value", "upstream"):
            shapes[which][1] = None
        signature = [{which: tf.TensorSpec(x, tf.float64) for which, x in shapes.items()}]
    with block_size(SMALL_BLOCK):
        run = tf.function(
            function, input_signature=signature, jit_compile=jit_compile, autograph=False
        )
        found = run(values)
    for which, direction in steps.items():
        derivative = np.sum(to_numpy(found[which]) * direction)
        np.testing.assert_allclose(derivative, differences[which], rtol=1e-7, err_msg=which)


def test_a_table_of_one_head_whose_gradient_is_sparse():
    rng = np.random.default_rng(4)
    position = RelativePosition(8, 11, dtype="float64")
    layer = MultiHeadAttention(1, 5, position=position, flash_attention=True, dtype="float64")
    x = rng.normal(size=(2, 7, 3))
    layer(x)
    table = layer.position.table
    start, along, step = (rng.normal(size=table.shape) for _ in range(3))

    def slope(values):
        """Of the sum of squares, by the table, in the direction `along`."""
        table.assign(values)
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(layer(x) ** 2)
        return tf.reduce_sum(tf.convert_to_tensor(tape.gradient(total, table.value)) * along)

    with tf.GradientTape() as outer:
        found = slope(start)
    derivative = np.sum(to_numpy(tf.convert_to_tensor(outer.gradient(found, table.value))) * step)
    difference = (slope(start + 1e-5 * step) - slope(start - 1e-5 * step)) / 2e-5
    np.testing.assert_allclose(derivative, to_numpy(difference), rtol=1e-7)
