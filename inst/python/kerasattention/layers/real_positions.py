"""Positions that are real numbers: what a layer does before Keras sees them.

Keras casts every floating-point argument to the layer's dtype, in which bfloat16 cannot tell
1000.1 from 1003. So a call hides its real positions from Keras.
"""

from typing import Any

import keras
import numpy as np
from keras import ops

from kerasattention.attend.tensors import Tensor, tensor_of

WIDE = ("float32", "float64")


class RealPositions:
    """Real positions on their way through `Layer.__call__`, which leaves such an object alone.

    Attributes:
        tensor: (B, T) or (B, T, axes) numbers of float32 or float64.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __repr__(self) -> str:
        return f"<real numbers of shape {tuple(self.tensor.shape)}, {self.tensor.dtype}>"


def hide_real(positions: Any, layer: keras.layers.Layer, query: Any) -> Any:
    """The positions of a call, hidden from Keras if they are real numbers that it might round.

    Not in a symbolic call, whose arguments a model holds and saves.

    Raises:
        ValueError: Numbers in low precision, NaN or infinite ones, different ones that are
            equal in float32 where the backend has no float64 or a model holds them, or a
            symbolic call of a layer that computes in low precision.
    """
    if not hasattr(positions, "dtype"):
        return positions  # None, or what the checks of a call refuse
    dtype = keras.backend.standardize_dtype(positions.dtype)
    if not keras.backend.is_float_dtype(dtype):
        return positions
    if dtype not in WIDE:
        raise ValueError(
            "`positions` that are real numbers must be float32 or float64: lower precision rounds "
            f"them. Received: positions of dtype {dtype}"
        )
    is_symbolic = keras.backend.is_keras_tensor(query) or keras.backend.is_keras_tensor(positions)
    if is_symbolic:
        _check_symbolic(layer)
    if isinstance(positions, np.ndarray):
        positions = _as_tensor(positions, _has_float64() and not is_symbolic)
    return positions if is_symbolic else RealPositions(positions)


def shown(positions: Any) -> Any:
    """The positions that `hide_real()` was given, as a tensor; real ones have no gradient."""
    if isinstance(positions, RealPositions):
        positions = positions.tensor  # (B, T)
    if not hasattr(positions, "dtype"):
        return positions  # None, or what the checks of a call refuse
    if keras.backend.is_int_dtype(keras.backend.standardize_dtype(positions.dtype)):
        return positions  # (B, T)
    return ops.stop_gradient(positions)  # (B, T)


def _check_symbolic(layer: keras.layers.Layer) -> None:
    if layer.input_dtype not in WIDE:
        raise ValueError(
            f"In a model, layer {layer.name!r} computes in {layer.input_dtype}, to which Keras "
            "would round its real `positions`. Make this layer with `dtype='float32'`, or give "
            "positions that are integers."
        )


def _as_tensor(positions: np.ndarray, keeps_float64: bool) -> Tensor:
    if not np.isfinite(positions).all():
        raise ValueError(f"`positions` must be finite. Received: {_first_bad(positions)}")
    if positions.dtype == "float64" and not keeps_float64:
        _check_order(positions)
        positions = positions.astype("float32")
    return ops.convert_to_tensor(positions, dtype=str(positions.dtype))  # (B, T)


def _has_float64() -> bool:
    """Whether the backend computes in float64: not JAX by default, nor torch on Apple's GPUs."""
    backend = keras.backend.backend()
    if backend == "torch":
        return tensor_of(0.0, "float32").device.type != "mps"
    if backend != "jax":
        return True
    import jax

    return bool(jax.config.jax_enable_x64)  # pyright: ignore[reportAttributeAccessIssue]


def _check_order(positions: np.ndarray) -> None:
    """Refuses positions whose order is lost in float32."""
    axis = 1 if positions.ndim == 3 else -1
    ordered = np.sort(positions, axis=axis)
    gaps = np.diff(ordered, axis=axis), np.diff(ordered.astype("float32"), axis=axis)
    lost = np.argwhere((gaps[0] > 0) & (gaps[1] <= 0))
    if len(lost):
        index = tuple(lost[0])
        first, gap = float(ordered[index]), float(gaps[0][index])
        raise ValueError(
            "`positions` must be numbers that float32 can tell apart: subtract the earliest "
            "position of each sequence first, as only differences matter to most layers. "
            f"Received: {first!r} and {first + gap!r}"
        )


def _first_bad(positions: np.ndarray) -> float:
    return float(positions[~np.isfinite(positions)][0])
