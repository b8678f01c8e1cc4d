"""Adds to a part of a tensor, without a copy of the whole where the backend can."""

import keras
from keras import ops

from kerasattention.attend.tensors import Span, Tensor, is_compiled_by_xla, shape_of, slice_axis


def add_at(x: Tensor, spans: dict[int, Span], part: Tensor) -> Tensor:
    """Adds a part to spans of axes, in place on torch and in graphs of TensorFlow.

    Args:
        x: Read by nothing else afterwards.
        spans: By axis; the part has the whole of the other axes.
        part: To be added.
    """
    if keras.backend.backend() == "tensorflow" and not is_compiled_by_xla():
        return _add_in_place(x, spans, part)
    here = x
    for axis, span in spans.items():
        here = slice_axis(here, axis, span)
    if keras.backend.backend() == "torch":
        here += part  # a view
        return x
    starts = [spans[axis].start if axis in spans else 0 for axis in range(len(x.shape))]
    return ops.slice_update(x, tuple(starts), here + part)


def _add_in_place(x: Tensor, spans: dict[int, Span], part: Tensor) -> Tensor:
    """`add_at()` on TensorFlow.

    Its `tensor_scatter_nd_add()` copies all of x on the CPU, and an update of a slice is an
    operation of XLA, which also compiles it for each size of the part while the graph runs.
    """
    import tensorflow as tf

    sizes, counts, last = shape_of(x), shape_of(part), max(spans)
    row = tf.zeros((), tf.int32)
    for axis in range(last + 1):
        start = spans[axis].start if axis in spans else 0
        row = tf.expand_dims(row, -1) * sizes[axis] + start + tf.range(counts[axis])
    inner = tf.reduce_prod(sizes[last + 1 :])
    rows = [tf.reshape(tensor, (-1, inner)) for tensor in (x, part)]
    added = tf.raw_ops.InplaceAdd(x=rows[0], i=tf.reshape(row, (-1,)), v=rows[1])
    added = tf.reshape(added, sizes)
    added.set_shape(x.shape)
    return added
