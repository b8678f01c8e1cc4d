"""Adds to a part of a tensor, without a copy of the whole where the backend can."""

import keras
from keras import ops

from kerasattention.attend.tensors import Span, Tensor, is_compiled_by_xla, shape_of, slice_axis


def add_at(x: Tensor, axis: int, span: Span, part: Tensor) -> Tensor:
    """Adds a part to a span of an axis, in place on torch and in graphs of TensorFlow."""
    if keras.backend.backend() == "tensorflow" and not is_compiled_by_xla():
        return _scatter_add(x, axis, span, part)
    here = slice_axis(x, axis, span)
    if keras.backend.backend() == "torch":
        here += part  # a view
        return x
    starts = [span.start if i == axis else 0 for i in range(len(x.shape))]
    return ops.slice_update(x, tuple(starts), here + part)


def _scatter_add(x: Tensor, axis: int, span: Span, part: Tensor) -> Tensor:
    """`add_at()` on TensorFlow, where an update of a slice is an operation of XLA.

    That copies all of x, and is compiled for each size of the part while the graph runs.
    """
    import tensorflow as tf

    sizes = shape_of(x)
    inner = tf.reduce_prod(sizes[axis + 1 :])
    outer = tf.range(tf.reduce_prod((1, *sizes[:axis]))) * sizes[axis]  # (outer)
    index = outer[:, None] + (span.start + tf.range(shape_of(part)[axis]))  # (outer, t)
    added = tf.tensor_scatter_nd_add(
        tf.reshape(x, (-1, inner)),
        tf.reshape(index, (-1, 1)),
        tf.reshape(part, (-1, inner)),
    )  # (outer * T, inner)
    added = tf.reshape(added, sizes)
    added.set_shape(x.shape)
    return added
