"""Refuses masks that were made to be added to logits: they say the opposite as booleans."""

from typing import Any

import keras
import numpy as np
from keras import ops

from kerasattention.attend.known_values import known_values

# Numbers added to hide keys are -1e4 in BERT, -3e4 in Keras, -1e9 or minus infinity elsewhere.
ADDED = -1e3


def check_not_added(name: str, x: Any) -> None:
    """Refuses an array, or a tensor of real numbers, that holds numbers far below 0.

    Any number but 0 attends, so that a mask of 0 and minus infinity, as others add it to the
    logits, would be the opposite of what it means. Nothing is known of the numbers in graphs and
    in functions that are compiled.

    Args:
        name: Of the argument.
        x: A mask, or None.

    Raises:
        ValueError: A number of -1000 or below, or NaN.
    """
    if _holds_added(x):
        raise ValueError(
            f"`{name}` must be True and False, or 1 and 0: whether to attend. "
            "Numbers to add to the logits are `attention_bias`. "
            f"Received: {name} of dtype {keras.backend.standardize_dtype(x.dtype)} with numbers "
            f"below {ADDED:g}"
        )


def _holds_added(x: Any) -> bool:
    """True where it is known to."""
    if isinstance(x, np.ndarray):
        return x.dtype.kind in "if" and not bool((x > ADDED).all())
    if not ops.is_tensor(x) or isinstance(x, keras.KerasTensor):
        return False
    if not keras.backend.is_float_dtype(keras.backend.standardize_dtype(x.dtype)):
        return False
    known = known_values(x)
    if known is None:
        return False
    try:
        return not bool(ops.all(known > ADDED))
    except RuntimeError:  # no number on torch: a fake or meta tensor, or torch.func.vmap()
        return False
