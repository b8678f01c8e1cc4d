"""Positions as a penalty on distance: attention with linear biases."""

import dataclasses
import math

import keras
import numpy as np
from keras import ops

from kerasattention.attend.tensors import Span, Tensor
from kerasattention.attend.visibility import Visibility
from kerasattention.positions.base import Position


@keras.saving.register_keras_serializable(package="kerasattention")
class AlibiPosition(Position):
    """Attention with linear biases (Press et al. 2022, https://arxiv.org/abs/2108.12409).

    The logit of a query and a key that are d positions apart is lowered by
    slope * |d|, each head with a slope of its own: the geometric sequence of the
    paper for N a power of two, and for any other N the authors' way of filling up.
    Without a causal mask keys on both sides are penalised alike.
    """

    def block_bias(self, num_query_heads: int, causal: bool) -> "AlibiBias":
        return AlibiBias(alibi_slopes(num_query_heads))


def alibi_slopes(num_heads: int) -> tuple[float, ...]:
    """One slope per head: 2^(-8/n), 2^(-16/n), ... for n the power of two at or below N.

    Heads beyond n take every other slope of the sequence for 2 n.
    """
    power = 2 ** int(math.log2(num_heads))
    slopes = _geometric(power)
    return tuple(slopes + _geometric(2 * power)[::2][: num_heads - power])


def _geometric(count: int) -> list[float]:
    return [2.0 ** (-8.0 * (index + 1) / count) for index in range(count)]


@dataclasses.dataclass(frozen=True)
class AlibiBias:
    """The bias of a block, from distances alone."""

    slopes: tuple[float, ...]

    def tensors(self) -> dict[str, Tensor]:
        return {}

    def with_tensors(self, tensors: dict[str, Tensor]) -> "AlibiBias":
        return self

    def block(self, visibility: Visibility, rows: Span, columns: Span) -> Tensor:
        """(B|1, N, t, s)."""
        distances = ops.cast(ops.abs(visibility.distances(rows, columns)), "float32")
        slopes = np.array(self.slopes, dtype="float32")[None, :, None, None]
        return ops.multiply(distances, -slopes)

    def block_gradient(
        self, gradient: Tensor, visibility: Visibility, rows: Span, columns: Span
    ) -> dict[str, Tensor]:
        return {}
