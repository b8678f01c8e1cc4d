"""Refuses integers that would be others in int32: two segments could become one."""

from typing import Any

import keras
import numpy as np
from keras import ops

from kerasattention.attend.known_values import value_on_jax
from kerasattention.attend.tensors import Tensor

WIDE = ("int64", "uint32", "uint64")
LIMITS = np.iinfo("int32")


def check_int32(name: str, x: Any) -> None:
    """Refuses an array or a tensor with numbers that int32 does not hold.

    Of tensors of 64 bits two numbers are copied from the device, so int32 is faster on a GPU. A
    graph of TensorFlow has the check as an operation. In a function that JAX compiles, and in one
    that XLA compiles, nothing is known of the numbers.

    Args:
        name: Of the argument.
        x: Numbers of any dtype, or None.

    Raises:
        ValueError: A number beyond int32.
    """
    if isinstance(x, np.ndarray):
        is_wide = x.dtype.kind in "iu" and not np.can_cast(x.dtype, "int32")
        extremes = (int(x.min()), int(x.max())) if is_wide and x.size else None
    else:
        extremes = _extremes(name, x)
    for number in extremes or ():
        if not LIMITS.min <= number <= LIMITS.max:
            raise ValueError(_message(name, number))


def _message(name: str, number: int | str) -> str:
    return f"`{name}` must be integers from {LIMITS.min} to {LIMITS.max}. Received: {number}"


def _extremes(name: str, x: Tensor | None) -> tuple[int, ...] | None:
    """The least and the largest number of a tensor of 64 bits, None where they are not known."""
    if not ops.is_tensor(x) or isinstance(x, keras.KerasTensor):
        return None
    if keras.backend.standardize_dtype(x.dtype) not in WIDE or 0 in x.shape:
        return None
    if keras.backend.backend() == "tensorflow":
        return _extremes_on_tensorflow(name, x)
    if keras.backend.backend() == "torch":
        return _extremes_on_torch(x)
    value = value_on_jax(x) if keras.backend.backend() == "jax" else x
    return None if value is None else (int(value.min()), int(value.max()))


def _extremes_on_tensorflow(name: str, x: Tensor) -> tuple[int, ...] | None:
    import tensorflow as tf

    if tf.executing_eagerly():
        return int(tf.reduce_min(x)), int(tf.reduce_max(x))
    fits = tf.reduce_all(tf.equal(tf.cast(tf.cast(x, "int32"), x.dtype), x))
    tf.debugging.Assert(fits, [_message(name, "others")])
    return None


def _extremes_on_torch(x: Tensor) -> tuple[int, ...] | None:
    import torch

    is_tracing = torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
    if torch.compiler.is_compiling() or is_tracing:
        return None
    if x.is_cuda and torch.cuda.is_current_stream_capturing():
        return None
    try:
        x = x.to(torch.int64)  # uint32 and uint64 have no order in torch
        return int(x.min()), int(x.max())
    except RuntimeError:  # no number: a fake or meta tensor, or torch.func.vmap()
        return None
