"""Biases of a block that are looked up in a table, and the gradient of the table."""

import keras
from keras import ops

from kerasattention.attend.tensors import Tensor, segment_sum, shape_of


def clipped(distances: Tensor, farthest: int) -> Tensor:
    """Distances counted from 0, the lowest one; real ones without their fraction."""
    found = ops.clip(distances, -farthest, farthest)  # (...)
    if keras.backend.is_float_dtype(keras.backend.standardize_dtype(found.dtype)):
        found = ops.cast(found, "int32")  # (...)
    return found + farthest  # (...)


def sum_by_entry(gradient: Tensor, entries: Tensor, count: int) -> Tensor:
    """The gradient of a table (count, N), of which a block has an entry for each pair.

    Args:
        gradient: (B, N, t, s), of the block.
        entries: (B|1, t, s) int32.
    """
    if entries.shape[0] == 1:
        gradient = ops.sum(gradient, axis=0, keepdims=True)  # (1, N, t, s)
    samples, heads, length, keys = shape_of(gradient)
    if entries.shape[0] is None:  # a graph does not know whether it is 1
        entries = ops.broadcast_to(entries, (samples, length, keys))  # (B, t, s)
    pairs = samples * length * keys
    sums = ops.reshape(ops.moveaxis(gradient, 1, 0), (heads, pairs))  # (N, B * t * s)
    flat = ops.reshape(entries, (-1,))  # (B * t * s)
    return segment_sum(ops.transpose(sums), flat, count)  # (count, N)
