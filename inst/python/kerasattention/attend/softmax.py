"""Softmax that keeps rows without any visible key at zero.

The only place where masks, biases, caps and sinks meet the logits. Everything
here is float32 or better.
"""

from typing import NamedTuple, cast

from keras import ops

from kerasattention.attend.tensors import Tensor, tanh

MASKED_OUT = float("-inf")


class SoftmaxParts(NamedTuple):
    """exp(logits - row_max), the sum of each row, and row_max, which was subtracted."""

    numerator: Tensor
    denominator: Tensor
    row_max: Tensor


def cap(logits: Tensor, soft_cap: float | None) -> Tensor:
    """c * tanh(logits / c) (Gemma 2, Riviere et al. 2024)."""
    if soft_cap is None:
        return logits
    return tanh(logits * (1.0 / soft_cap)) * soft_cap  # (..., t, s)


def cap_gradient(capped: Tensor, soft_cap: float | None) -> Tensor | float:
    """The derivative of `cap`, from its result."""
    if soft_cap is None:
        return 1.0
    tanh_of_logits = capped * (1.0 / soft_cap)  # (..., t, s)
    return 1.0 - tanh_of_logits * tanh_of_logits  # (..., t, s)


def mask_logits(logits: Tensor, mask: Tensor | None, masked_out: float = MASKED_OUT) -> Tensor:
    """Adds `masked_out` to logits where the mask (or its broadcast) is False.

    Adds numbers of the mask's smaller shape: an addition broadcasts faster than a selection.
    """
    if mask is None:
        return logits
    return logits + ops.cast(ops.where(mask, 0.0, masked_out), logits.dtype)  # (..., t, s)


def exponentiate(
    logits: Tensor, sink: Tensor | None, may_be_empty: bool, masked_out: float = MASKED_OUT
) -> SoftmaxParts:
    """The parts of a softmax over the last axis.

    Args:
        logits: (..., t, s).
        sink: None or logits that broadcast to (..., t, 1) and join the
            denominator only (gpt-oss; Xiao et al. 2023 name them sinks).
        may_be_empty: Whether a row may see no key.
        masked_out: What was added to the logits of keys that are masked out.
    """
    row_max = _row_max(logits)  # (..., t, 1)
    if sink is not None:
        # Not a maximum of Keras, which on torch gives float32 for doubles.
        row_max = ops.where(row_max > sink, row_max, sink)  # (..., t, 1)
    if may_be_empty:
        # An infinite maximum would make -inf - -inf = NaN of a row without keys.
        row_max = ops.where(row_max <= 0.5 * masked_out, 0.0, row_max)  # (..., t, 1)
    # The softmax is the same for any number here. Derivatives by it cancel, but for rounding:
    # summed over all rows, that took two digits off the gradient of a sink.
    row_max = ops.stop_gradient(row_max)  # (..., t, 1)
    numerator = ops.exp(logits - row_max)  # (..., t, s)
    denominator = ops.sum(numerator, axis=-1, keepdims=True)  # (..., t, 1)
    if sink is not None:
        denominator = denominator + ops.exp(sink - row_max)  # (..., t, 1)
    return SoftmaxParts(numerator, denominator, row_max)


def _row_max(logits: Tensor) -> Tensor:
    """(..., t, 1); minus infinity for a row of no logits, of which Keras refuses a maximum."""
    if 0 in logits.shape:
        return ops.sum(logits, axis=-1, keepdims=True) + MASKED_OUT  # (..., t, 1)
    return ops.max(logits, axis=-1, keepdims=True)  # (..., t, 1)


def reciprocal(denominator: Tensor, may_be_empty: bool) -> Tensor:
    """1 / denominator, and 0 for a row without keys."""
    if not may_be_empty:
        return 1.0 / denominator  # (..., t, 1)
    empty = denominator == 0.0  # (..., t, 1)
    return ops.where(empty, 0.0, 1.0 / cast("Tensor", ops.where(empty, 1.0, denominator)))
