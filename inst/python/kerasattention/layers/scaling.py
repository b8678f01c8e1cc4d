"""Factors of the queries before the product with the keys."""

import math
from typing import Any

from keras import ops

from kerasattention import checks
from kerasattention.attend.tensors import Tensor, accumulator_of

LEARNED = "learned"


def check_scale(name: str, value: Any) -> float | str | None:
    """None, a positive number, or "learned"."""
    if value is None or value == LEARNED:
        return value
    # Outside of float32's range the logits would be 0 or infinite.
    if not checks.is_number(value) or not 1.2e-38 <= value <= 3.4e38:
        raise ValueError(
            f'`{name}` must be `None`, a positive number or "{LEARNED}". Received: {name}={value!r}'
        )
    return float(value)


def per_dimension_factor(weight: Tensor, dtype: Any) -> Tensor:
    """softplus(weight) / softplus(0), (H), in float32 or better: 1 where the weight is 0."""
    weight = ops.cast(weight, accumulator_of(dtype))  # (H)
    # Not `ops.softplus()`, which on torch is linear above 20: off by 2e-9.
    softplus = ops.negative(ops.log_sigmoid(ops.negative(weight)))  # (H)
    return softplus * (1.0 / math.log(2.0))  # (H)


def multiply(heads: Tensor, factor: Tensor) -> Tensor:
    """Heads times a factor that broadcasts to them, in its dtype; the result in that of heads."""
    return ops.cast(ops.cast(heads, factor.dtype) * factor, heads.dtype)  # (B, T, N, H)
