"""Learned biases of the logits, one per bucket of distances and head."""

import dataclasses
import math
from typing import Any

import keras
import numpy as np
from keras import ops

from kerasattention import checks
from kerasattention.attend.bias import BlockBias
from kerasattention.attend.mask import AttentionMask
from kerasattention.attend.tensors import (
    Axes,
    Columns,
    Span,
    Tensor,
    accumulator_of,
    is_static,
    one_span,
    segment_sum,
    shape_of,
)
from kerasattention.positions.base import Position

# Tables of these sizes are made from two numbers, which may come from a file.
MOST_BUCKETS = 2**14
MOST_DISTANCE = 2**18


# A Keras layer, so that whatever holds it tracks, saves and trains the table.
@keras.saving.register_keras_serializable(package="kerasattention")
class RelativePosition(keras.layers.Layer, Position):
    """Relative position biases in buckets (Raffel et al. 2020, https://arxiv.org/abs/1910.10683).

    Each head learns one number per bucket, which is added to the logits of all
    pairs at distances of that bucket. Half of a side's buckets hold one distance
    each, the others grow with the logarithm up to `max_distance`, beyond which
    all share the last. Keys behind and ahead of the query have buckets of their
    own, unless the mask is causal: then all buckets are for the keys behind. Real
    distances count without their fraction.

    One object given to several layers is one table that they share, as in T5.

    Args:
        num_buckets: Number of buckets: even, from 4 to 16384.
        max_distance: Distance from which on all share a bucket, at most 262144.
        **kwargs: `name`, `trainable`, `dtype` of a Keras layer.

    Raises:
        ValueError: A value that does not fit; the message has the rule.
    """

    def __init__(self, num_buckets: int = 32, max_distance: int = 128, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if (
            not checks.is_integer(num_buckets)
            or not 4 <= num_buckets <= MOST_BUCKETS
            or num_buckets % 2
        ):
            raise ValueError(
                f"`num_buckets` must be an even integer of at least 4 and at most {MOST_BUCKETS}, "
                f"half of it for each side. Received: num_buckets={num_buckets!r}"
            )
        if not checks.is_integer(max_distance) or max_distance <= num_buckets // 2:
            raise ValueError(
                "`max_distance` must be an integer greater than half of `num_buckets`: so "
                "many distances have a bucket of their own. Received: "
                f"max_distance={max_distance!r}, num_buckets={num_buckets}"
            )
        if max_distance > MOST_DISTANCE:
            raise ValueError(
                f"`max_distance` must be at most {MOST_DISTANCE}: the bucket of each distance is "
                f"looked up in a table. Received: max_distance={max_distance}"
            )
        self.num_buckets = num_buckets
        self.max_distance = max_distance
        self.num_heads: int | None = None

    def prepare(self, num_query_heads: int, head_size: int) -> None:
        if self.num_heads is None:
            self.build(num_query_heads)
        elif self.num_heads != num_query_heads:
            raise ValueError(
                f"This `RelativePosition` has a table for {self.num_heads} heads, and a layer "
                f"with {num_query_heads} query heads cannot share it. Give that layer a "
                "`RelativePosition` of its own."
            )

    def build(self, num_heads: int) -> None:
        """Makes the table (num_buckets, N)."""
        if not checks.is_integer(num_heads) or not 1 <= num_heads <= MOST_BUCKETS:
            raise ValueError(
                f"A `RelativePosition` serves 1 to {MOST_BUCKETS} heads. Received: {num_heads!r}"
            )
        self.num_heads = num_heads
        self.table = self.add_weight(
            name="table",
            shape=(self.num_buckets, num_heads),
            initializer=keras.initializers.RandomNormal(stddev=0.02),
            autocast=False,
        )
        self.built = True

    def get_build_config(self) -> dict[str, Any] | None:
        return None if self.num_heads is None else {"num_heads": self.num_heads}

    def build_from_config(self, config: dict[str, Any]) -> None:
        self.prepare(config["num_heads"], 0)

    def block_bias(self, num_query_heads: int, causal: bool) -> "BucketBias":
        buckets = distance_buckets(self.num_buckets, self.max_distance, bidirectional=not causal)
        return BucketBias(ops.convert_to_tensor(self.table), tuple(buckets.tolist()))

    def head_axis(self, variable: Any) -> int | None:
        return 1 if variable is getattr(self, "table", None) else None

    def call(self, distances: Tensor) -> Tensor:
        """The bias of distances (key position less query position), both sides: (..., N)."""
        bias = self.block_bias(self.table.shape[1], causal=False)
        return ops.moveaxis(bias.of_distances(distances), 0, -1)  # (..., N)

    def quantize(self, *args: Any, **kwargs: Any) -> None:
        """Leaves the table as it is, where a whole model is quantised: nothing multiplies it."""

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_buckets": self.num_buckets,
            "max_distance": self.max_distance,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "RelativePosition":
        return cls(**config)

    __repr__ = keras.layers.Layer.__repr__


def distance_buckets(num_buckets: int, max_distance: int, bidirectional: bool) -> np.ndarray:
    """The bucket of each distance from -max_distance to max_distance; farther ones share the ends.

    In float32 as in T5's code: at powers of two its rounding decides the bucket,
    and published tables were learned with it.
    """
    distances = np.arange(-max_distance, max_distance + 1)  # (2 M + 1)
    if bidirectional:
        num_buckets //= 2
        first = np.where(distances > 0, num_buckets, 0)  # (2 M + 1)
        away = np.abs(distances)  # (2 M + 1)
    else:
        first = 0
        away = np.maximum(-distances, 0)  # (2 M + 1)
    exact = num_buckets // 2
    growth = np.log(np.maximum(away, 1).astype("float32") / np.float32(exact))  # (2 M + 1)
    growth = growth / np.float32(math.log(max_distance / exact))  # (2 M + 1)
    large = exact + (growth * np.float32(num_buckets - exact)).astype("int64")  # (2 M + 1)
    return first + np.where(away < exact, away, np.minimum(large, num_buckets - 1))  # (2 M + 1)


@dataclasses.dataclass(frozen=True)
class BucketBias:
    """Biases looked up by distance, block by block.

    Attributes:
        table: (num_buckets, N), looked up in float32 or in its own float64.
        buckets: The bucket of each distance from -M to M.
    """

    table: Tensor
    buckets: tuple[int, ...]

    def tensors(self) -> dict[str, Tensor]:
        return {"table": self.table}

    def differentiable(self) -> list[str]:
        return ["table"]

    def axes(self, name: str) -> Axes:
        return (None, "heads")

    def with_tensors(self, tensors: dict[str, Tensor]) -> BlockBias:
        return dataclasses.replace(self, table=tensors["table"])

    def with_head_tensors(self) -> BlockBias:
        return self

    def in_precision(self, dtype: str) -> BlockBias:
        return self

    def block(self, mask: AttentionMask, rows: Span, columns: Columns) -> Tensor:
        """(B|1, N, t, s)."""
        if _is_consecutive(mask, rows, columns):
            values = self.of_distances(_diagonal_distances(mask, rows, columns))  # (N, t + s - 1)
            return spread_diagonals(values, rows.size, columns.size)[None]  # (1, N, t, s)
        distances = mask.distances(rows, columns)[:, 0]  # (B|1, t, s)
        return ops.moveaxis(self.of_distances(distances), 0, 1)  # (B|1, N, t, s)

    def block_gradient(
        self, gradient: Tensor, mask: AttentionMask, rows: Span, columns: Columns
    ) -> dict[str, Tensor]:
        if _is_consecutive(mask, rows, columns):
            distances = _diagonal_distances(mask, rows, columns)  # (t + s - 1)
            sums = sum_diagonals(ops.sum(gradient, axis=0))  # (N, t + s - 1)
        else:
            distances = mask.distances(rows, columns)[:, 0]  # (B|1, t, s)
            if distances.shape[0] == 1:
                gradient = ops.sum(gradient, axis=0, keepdims=True)
            samples, heads, length, keys = shape_of(gradient)
            if distances.shape[0] is None:  # a graph does not know whether it is 1
                distances = ops.broadcast_to(distances, (samples, length, keys))
            count = samples * length * keys
            sums = ops.reshape(ops.moveaxis(gradient, 1, 0), (heads, count))
        buckets = ops.reshape(self._buckets_of(distances), (-1,))
        table = segment_sum(ops.transpose(sums), buckets, self.table.shape[0])
        return {"table": table}

    def of_distances(self, distances: Tensor) -> Tensor:
        """(...) to (N, ...)."""
        # The small axis is looked up first, so that the large lookup is a contiguous one.
        by_distance = ops.take(
            self.table, np.array(self.buckets, dtype="int32"), axis=0
        )  # (2 M + 1, N)
        by_distance = ops.transpose(
            ops.cast(by_distance, accumulator_of(self.table.dtype))
        )  # (N, 2 M + 1)
        return ops.take(by_distance, self._clipped(distances), axis=1)  # (N, ...)

    def _buckets_of(self, distances: Tensor) -> Tensor:
        buckets = ops.convert_to_tensor(np.array(self.buckets, dtype="int32"))  # (2 M + 1)
        return ops.take(buckets, self._clipped(distances), axis=0)  # (...)

    def _clipped(self, distances: Tensor) -> Tensor:
        """Distances counted from 0, the farthest one behind; real ones without their fraction."""
        farthest = len(self.buckets) // 2
        clipped = ops.clip(distances, -farthest, farthest)  # (...)
        if keras.backend.is_float_dtype(keras.backend.standardize_dtype(clipped.dtype)):
            clipped = ops.cast(clipped, "int32")  # (...)
        return clipped + farthest  # (...)


def spread_diagonals(values: Tensor, rows: int, columns: int) -> Tensor:
    """(N, t + s - 1) values, lowest diagonal first, to (N, t, s) with constant diagonals.

    Reshaping rows of length L into rows of length L - 1 moves each by one more
    step: no value is looked up one by one.
    """
    heads, length = values.shape[0], rows + columns - 1
    if rows == 1:
        return values[:, None]  # (N, 1, s)
    repeated = ops.broadcast_to(values[:, None], (heads, rows, length))  # (N, t, t + s - 1)
    flat = ops.reshape(repeated, (heads, rows * length))  # (N, t * (t + s - 1))
    shifted = flat[:, rows - 1 : rows - 1 + rows * (length - 1)]  # (N, t * (t + s - 2))
    return ops.reshape(shifted, (heads, rows, length - 1))[:, :, :columns]  # (N, t, s)


def sum_diagonals(x: Tensor) -> Tensor:
    """(N, t, s) to (N, t + s - 1): the transpose of `spread_diagonals`."""
    heads, rows, columns = x.shape
    length = rows + columns - 1
    if rows == 1:
        return x[:, 0]  # (N, s)
    wide = ops.pad(x, [(0, 0), (0, 0), (0, length - 1 - columns)])  # (N, t, t + s - 2)
    flat = ops.reshape(wide, (heads, rows * (length - 1)))  # (N, t * (t + s - 2))
    flat = ops.pad(flat, [(0, 0), (rows - 1, 1)])  # (N, t * (t + s - 1))
    return ops.sum(ops.reshape(flat, (heads, rows, length)), axis=1)  # (N, t + s - 1)


def _is_consecutive(mask: AttentionMask, rows: Span, columns: Columns) -> bool:
    """Whether positions grow by one along both axes, so that diagonals share a distance."""
    return (
        mask.query_positions is None
        and mask.key_positions is None
        and isinstance(columns, Span)
        and is_static(rows.size, columns.size)
    )


def _diagonal_distances(mask: AttentionMask, rows: Span, columns: Columns) -> Tensor:
    """Distances of a block's diagonals, from the lowest on: (t + s - 1)."""
    columns = one_span(columns)
    first = columns.start - (rows.start + mask.offset) - (rows.size - 1)
    return ops.arange(rows.size + columns.size - 1, dtype="int32") + first  # (t + s - 1)
