"""Linear biases: a penalty of the logits that grows with the distance."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from kerasattention import checks
from kerasattention.attend.mask import AttentionMask
from kerasattention.attend.tensors import Axes, Columns, Span, Tensor, tensor_of
from kerasattention.positions.base import Position


@keras.saving.register_keras_serializable(package="kerasattention")
class AlibiPosition(Position):
    """Attention with linear biases (Press et al. 2022, https://arxiv.org/abs/2108.12409).

    The logit of a query and a key that are d positions apart is lowered by
    slope * |d|, with one slope per head: the geometric sequence of the paper for N
    a power of two, completed for any other N as in the authors' code. Without a causal
    mask keys on both sides are penalised equally.

    Args:
        slopes: One per query head; by default those of the paper. A layer some of
            whose heads were removed keeps the slopes of the others.

    Raises:
        ValueError: Slopes that are not positive numbers.
    """

    def __init__(self, slopes: Sequence[float] | None = None) -> None:
        if slopes is not None:
            slopes = tuple(slopes) if isinstance(slopes, Iterable) else (slopes,)
            if not slopes or not all(_is_slope(slope) for slope in slopes):
                raise ValueError(
                    "`slopes` must be `None` or positive numbers, one per query head. "
                    f"Received: slopes={slopes!r}"
                )
        self.slopes = slopes

    def prepare(self, num_query_heads: int, head_size: int) -> None:
        if self.slopes is not None and len(self.slopes) != num_query_heads:
            raise ValueError(
                f"`slopes` must have one number for each of {num_query_heads} query heads. "
                f"Received: {len(self.slopes)} of them"
            )

    def block_bias(
        self, num_query_heads: int, causal: bool, coordinates: Tensor | None = None
    ) -> "AlibiBias":
        return AlibiBias(self.slopes or alibi_slopes(num_query_heads))

    def keep_heads(self, kept: Sequence[int], num_query_heads: int) -> "AlibiPosition":
        slopes = self.slopes or alibi_slopes(num_query_heads)
        return AlibiPosition([slopes[head] for head in kept])

    def get_config(self) -> dict[str, Any]:
        return {} if self.slopes is None else {"slopes": list(self.slopes)}


def alibi_slopes(num_heads: int) -> tuple[float, ...]:
    """One slope per head: 2^(-8/n), 2^(-16/n), ... for n the power of two at or below N.

    Heads beyond n take every other slope of the sequence for 2 n.
    """
    power = 2 ** int(math.log2(num_heads))
    slopes = _geometric(power)
    return tuple(slopes + _geometric(2 * power)[::2][: num_heads - power])


def _geometric(count: int) -> list[float]:
    return [2.0 ** (-8.0 * (index + 1) / count) for index in range(count)]


def _is_slope(x: Any) -> bool:
    return checks.is_number(x) and 0 < x < 1e30


@dataclasses.dataclass(frozen=True)
class AlibiBias:
    """The bias of a block, a function of distances only.

    Attributes:
        slopes: One per query head: numbers, or a tensor (N) where the heads are split.
        dtype: In which the bias is computed.
    """

    slopes: tuple[float, ...] | Tensor
    dtype: str = "float32"

    def tensors(self) -> dict[str, Tensor]:
        return {} if isinstance(self.slopes, tuple) else {"slopes": self.slopes}

    def differentiable(self) -> list[str]:
        return []

    def axes(self, name: str) -> Axes:
        return ("heads",)

    def with_tensors(self, tensors: dict[str, Tensor]) -> "AlibiBias":
        return dataclasses.replace(self, **tensors)

    def map_queries(self, change: Callable[[Tensor, int], Tensor]) -> "AlibiBias":
        return self

    def with_head_tensors(self) -> "AlibiBias":
        slopes = ops.convert_to_tensor(np.array(self.slopes, dtype=self.dtype))  # (N)
        return dataclasses.replace(self, slopes=slopes)

    def in_precision(self, dtype: str) -> "AlibiBias":
        return dataclasses.replace(self, dtype=dtype)

    def block(self, mask: AttentionMask, rows: Span, columns: Columns) -> Tensor:
        """(B|1, N, t, s)."""
        distances = ops.cast(ops.abs(mask.distances(rows, columns)), self.dtype)  # (B|1, 1, t, s)
        slopes = self.slopes
        if isinstance(slopes, tuple):
            slopes = np.array(slopes, dtype=self.dtype)  # (N)
        slopes = slopes[None, :, None, None]  # (1, N, 1, 1)
        # Not `ops.multiply()`, which gives float32 for float64 on torch (Keras 3.16).
        return distances * -tensor_of(slopes)  # (B|1, N, t, s)

    def block_gradient(
        self, gradient: Tensor, mask: AttentionMask, rows: Span, columns: Columns
    ) -> dict[str, Tensor]:
        return {}
