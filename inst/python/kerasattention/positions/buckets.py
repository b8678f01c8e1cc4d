"""Biases of the logits by buckets of distances, block by block."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from keras import ops

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
)
from kerasattention.positions.lookup import clipped, sum_by_entry


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

    def map_queries(self, change: Callable[[Tensor, int], Tensor]) -> BlockBias:
        return self

    def with_head_tensors(self) -> BlockBias:
        return self

    def in_precision(self, dtype: str) -> BlockBias:
        return self

    def block(self, mask: AttentionMask, rows: Span, columns: Columns) -> Tensor:
        """(B|1, N, t, s)."""
        if is_consecutive(mask, rows, columns):
            values = self.of_distances(diagonal_distances(mask, rows, columns))  # (N, t + s - 1)
            return spread_diagonals(values, rows.size, columns.size)[None]  # (1, N, t, s)
        distances = mask.distances(rows, columns)[:, 0]  # (B|1, t, s)
        return ops.moveaxis(self.of_distances(distances), 0, 1)  # (B|1, N, t, s)

    def block_gradient(
        self, gradient: Tensor, mask: AttentionMask, rows: Span, columns: Columns
    ) -> dict[str, Tensor]:
        if is_consecutive(mask, rows, columns):
            distances = diagonal_distances(mask, rows, columns)  # (t + s - 1)
            sums = sum_diagonals(ops.sum(gradient, axis=0))  # (N, t + s - 1)
            buckets = self._buckets_of(distances)  # (t + s - 1)
            table = segment_sum(ops.transpose(sums), buckets, self.table.shape[0])
        else:
            distances = mask.distances(rows, columns)[:, 0]  # (B|1, t, s)
            buckets = self._buckets_of(distances)  # (B|1, t, s)
            table = sum_by_entry(gradient, buckets, self.table.shape[0])
        return {"table": table}  # (num_buckets, N)

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
        return clipped(distances, len(self.buckets) // 2)  # (...)


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


def is_consecutive(mask: AttentionMask, rows: Span, columns: Columns) -> bool:
    """Whether positions grow by one along both axes, so that diagonals share a distance."""
    return (
        mask.query_positions is None
        and mask.key_positions is None
        and isinstance(columns, Span)
        and is_static(rows.size, columns.size)
    )


def diagonal_distances(mask: AttentionMask, rows: Span, columns: Columns) -> Tensor:
    """Distances of a block's diagonals, from the lowest on: (t + s - 1)."""
    columns = one_span(columns)
    first = columns.start - (rows.start + mask.offset) - (rows.size - 1)
    return ops.arange(rows.size + columns.size - 1, dtype="int32") + first  # (t + s - 1)
