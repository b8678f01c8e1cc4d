"""Predictions for numbers of rows that the devices do not divide."""

from typing import Any

import keras
import numpy as np

from kerasattention import checks
from kerasattention.distribution.engine import batch_shards


def predict_padded(model: keras.Model, x: Any, batch_size: int | None = None) -> Any:
    """`model.predict(x)` for any number of rows: the last row is repeated, and cut off again.

    Args:
        model: A model built in `with_distribution()`; call this inside it too.
        x: Arrays (rows, ...) in the structure of the model's inputs.
        batch_size: Rows in a batch, over all devices; by default 32, or the next multiple of the
            number of parts of a batch.
    """
    checks.optional_positive_integer("batch_size", batch_size)
    arrays = keras.tree.map_structure(np.asarray, x)
    counts = {array.shape[0] if array.ndim else None for array in keras.tree.flatten(arrays)}
    if len(counts) != 1 or counts <= {0, None}:
        raise ValueError(
            "`x` must be arrays of the same number of rows, at least 1. Received: "
            f"{sorted(counts, key=str)} rows"
        )
    rows = counts.pop()
    distribution = keras.distribution.distribution()
    shards = 1 if distribution is None else batch_shards(distribution)
    missing = -rows % shards
    if missing:
        arrays = keras.tree.map_structure(lambda array: _with_last_row(array, missing), arrays)
    batch_size = batch_size or 32 + -32 % shards
    result = model.predict(arrays, batch_size=batch_size, verbose=0)  # pyright: ignore[reportArgumentType] # its docs list 0
    return keras.tree.map_structure(lambda array: array[:rows], result)


def _with_last_row(array: np.ndarray, count: int) -> np.ndarray:
    """The array with its last row `count` times more. Zeros could be tokens that no model has."""
    return np.concatenate([array, np.repeat(array[-1:], count, axis=0)])
