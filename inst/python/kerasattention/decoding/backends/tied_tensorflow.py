"""Tied embeddings, transposed before a loop that XLA compiles.

Logits are the product of the last features with the transpose of the table of tokens. XLA's
library for products takes longer for that of several rows than for one with a matrix as it
lies in memory, so a copy that lies so is worth its time where there are some steps to make.
"""

from typing import Any

import keras
import tensorflow as tf

from kerasattention.attend.tensors import Tensor

# How many steps are worth the copy.
ENOUGH_STEPS = 16


class TiedEmbedding:
    """Takes the place of a layer; to be made within the function that uses it."""

    def __init__(self, layer: keras.layers.ReversibleEmbedding) -> None:
        self._layer = layer
        self._table = tf.transpose(tf.convert_to_tensor(layer.embeddings))

    def __call__(self, x: Tensor, reverse: bool = False) -> Tensor:
        """(B, t) tokens to (B, t, D), or where `reverse` (B, t, D) to logits (B, t, V)."""
        if not reverse or x.dtype != self._table.dtype:
            return self._layer(x, reverse=reverse)
        logits = tf.matmul(tf.reshape(x, (-1, self._table.shape[0])), self._table)
        return tf.reshape(logits, (*x.shape[:-1], self._table.shape[1]))


def tied_embeddings(operations: Any) -> dict[int, TiedEmbedding]:
    """What to call in place of those that do nothing but multiply, by identity."""
    layers = {id(x): x for x in operations if _only_multiplies(x)}
    return {name: TiedEmbedding(layer) for name, layer in layers.items()}


def _only_multiplies(operation: Any) -> bool:
    return (
        type(operation) is keras.layers.ReversibleEmbedding
        and operation.tie_weights
        and operation.reverse_dtype is None
        and operation.logit_soft_cap is None
        and operation.quantization_mode is None
        and operation.compute_dtype == operation.variable_dtype
    )
