"""Keras's layer and ours with the same weights, in the sizes of the report."""

import keras

import kerasattention
from runners import tensor

D, N, K, H = 512, 8, 2, 64


def pair(length: int, batch: int = 1, **options):
    """(Keras's layer, ours), built for (B, T, D), the same weights."""
    sizes = {"head_dim": H, "num_query_heads": N, "num_key_value_heads": K}
    theirs = keras.layers.GroupQueryAttention(**sizes, **options)
    ours = kerasattention.GroupQueryAttention(**sizes, **options)
    for layer in (theirs, ours):
        layer.build((batch, length, D), (batch, length, D))
    ours.set_weights(theirs.get_weights())
    return theirs, ours


def inputs(length: int, batch: int = 1):
    return tensor((batch, length, D))


def flops(length: int, causal: bool = True) -> float:
    """Multiplications and additions of one forward pass that causality leaves, B = 1."""
    projections = 2 * length * D * (2 * N * H + 2 * K * H)
    products = 2 * 2 * length * length * N * H
    return projections + products / (2 if causal else 1)
