"""Refuses masks of numbers other than 0 and 1: one added to logits hides what it should show."""

from typing import Any

import keras
import numpy as np
from keras import ops

from kerasattention.attend.finite import value_on_jax
from kerasattention.attend.tensors import Tensor


def check_boolean(name: str, x: Any) -> None:
    """Refuses an array of numbers, or a tensor of real numbers, other than 0 and 1.

    A mask of 0 and minus infinity, as others add it to the logits, would be the opposite of what
    it means. Nothing is known of the numbers in graphs and in functions that are compiled.

    Args:
        name: Of the argument.
        x: A mask, or None.

    Raises:
        ValueError: A number that is not 0 and not 1.
    """
    if not _is_boolean(x):
        raise ValueError(
            f"`{name}` must be True and False, or 1 and 0: whether to attend. "
            "Numbers to add to the logits are `attention_bias`. "
            f"Received: {name} of dtype {keras.backend.standardize_dtype(x.dtype)} with others"
        )


def _is_boolean(x: Any) -> bool:
    """False where some numbers are known to be others."""
    if isinstance(x, np.ndarray):
        return x.dtype.kind not in "iuf" or bool(((x == 0) | (x == 1)).all())
    if not ops.is_tensor(x) or isinstance(x, keras.KerasTensor):
        return True
    if not keras.backend.is_float_dtype(keras.backend.standardize_dtype(x.dtype)):
        return True
    known = _known(x)
    if known is None:
        return True
    try:
        return bool(ops.all(ops.logical_or(known == 0, known == 1)))
    except RuntimeError:  # no number on torch: a fake or meta tensor, or torch.func.vmap()
        return True


def _known(x: Tensor) -> Tensor | None:
    """The tensor, or None where its numbers are not known."""
    backend = keras.backend.backend()
    if backend == "jax":
        return value_on_jax(x)
    if backend == "tensorflow":
        import tensorflow as tf

        return x if tf.executing_eagerly() else None
    if backend == "torch":
        import torch

        is_tracing = torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
        if torch.compiler.is_compiling() or is_tracing:
            return None
        if x.is_cuda and torch.cuda.is_current_stream_capturing():
            return None
    return x
