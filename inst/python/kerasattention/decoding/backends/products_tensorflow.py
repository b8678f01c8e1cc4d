"""Products in a loop that XLA compiles on TensorFlow: weights reshaped before the loop.

A product of one row with a kernel that is reshaped beside it becomes one loop of XLA's on a
CPU, which reads the kernel column by column; a product with a matrix is left to a library.
"""

import functools

import tensorflow as tf

from kerasattention.decoding.backends.products import Linear, Products

# The number of steps from which on the copy of a table is worth its time.
ENOUGH_STEPS = 16


def loop_products(layers: list[Linear], rows: int, steps: int) -> Products:
    """Overrides for a loop; to be made in the function that has the loop.

    Tied embeddings are transposed where there are several rows: XLA's library takes longer for
    that product than for one with a matrix as it is in memory.
    """
    products = {}
    for linear in layers:
        copies_table = linear.transposed and rows > 1 and steps >= ENOUGH_STEPS
        is_matrix = not linear.transposed and len(linear.weight.shape) == 2
        if linear.is_int8 or is_matrix or (linear.transposed and not copies_table):
            continue
        matrix = linear.matrix(tf.convert_to_tensor(linear.weight))  # (I, O)
        multiply = functools.partial(_multiply, matrix)
        products[id(linear.layer)] = linear.override(multiply, None)
    return products


def _multiply(matrix: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    return tf.matmul(rows, matrix)
