"""Kernels of projections as matrices, reshaped before a loop that XLA compiles.

A product of one row with a kernel that is reshaped beside it becomes one loop of XLA's on a
CPU, which reads the kernel column by column; a product with a matrix is left to a library.
"""

import math
from typing import NamedTuple

import keras
import tensorflow as tf

from kerasattention._keras import flatten_layers
from kerasattention.attend.tensors import Tensor
from kerasattention.layers.attention import AttentionLayer


class Kernel(NamedTuple):
    """A kernel as (features in, features out), and the axes that it really has for these."""

    matrix: Tensor
    taken: int
    made: tuple[int, ...]


Projections = list[tuple[keras.layers.EinsumDense, int]]


def projections_of(model: keras.Model) -> Projections:
    """Those of a model's attention layers, each with how many axes it takes in."""
    return [
        (layer.projection(name), 2 if name == "output" else 1)
        for layer in flatten_layers(model)
        if isinstance(layer, AttentionLayer)
        for name in ("query", "key", "value", "gate", "output")
        if layer.projection(name) is not None
    ]


class FlatKernels:
    """Kernels of projections; to be made within the function that uses them."""

    def __init__(self, projections: Projections) -> None:
        self._kernels: dict[int, Kernel] = {}
        for dense, taken in projections:
            self._add(dense, taken)

    def _add(self, dense: keras.layers.EinsumDense, taken: int) -> None:
        if dense.quantization_mode is not None or dense.lora_enabled:
            return
        kernel = tf.convert_to_tensor(dense.kernel)
        made = tuple(kernel.shape[taken:])
        matrix = tf.reshape(kernel, (-1, math.prod(made)))
        self._kernels[id(dense)] = Kernel(matrix, taken, made)

    def apply(self, dense: keras.layers.EinsumDense, x: Tensor) -> Tensor:
        """What the projection gives: its own call where it is not a plain product."""
        kernel = self._kernels.get(id(dense))
        if kernel is None or x.dtype != kernel.matrix.dtype or x.dtype != dense.compute_dtype:
            return dense(x)
        outer = x.shape[: len(x.shape) - kernel.taken]
        rows = tf.reshape(x, (-1, kernel.matrix.shape[0]))
        output = tf.reshape(tf.matmul(rows, kernel.matrix), (*outer, *kernel.made))
        if dense.bias is not None:
            output = output + tf.convert_to_tensor(dense.bias)
        return output if dense.activation is None else dense.activation(output)
