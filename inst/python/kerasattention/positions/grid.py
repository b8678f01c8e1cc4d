"""Learned biases of the logits, one per offset along several axes and head."""

import dataclasses
import math
from collections.abc import Callable

from keras import ops

from kerasattention.attend.mask import AttentionMask
from kerasattention.attend.tensors import (
    Axes,
    Columns,
    Span,
    Tensor,
    accumulator_of,
    slice_axis,
)
from kerasattention.positions.lookup import clipped, sum_by_entry


@dataclasses.dataclass(frozen=True)
class GridBias:
    """Biases looked up by the offsets of a query and a key along each axis, block by block.

    Attributes:
        table: (E, N), looked up in float32 or in its own float64; E is the product of 2 M + 1 over
            the axes, the last axis the fastest, and offsets are query less key.
        query_coordinates: (B|1, T, axes) integers or real numbers.
        key_coordinates: (B|1, S, axes) of them.
        farthest: M of each axis.
        class_token: Whether some tokens have no offsets. E is then 3 more: of such a query, of
            such a key, of both. The coordinates are (B|1, T, axes + 1), the last one 1 for them.
    """

    table: Tensor
    query_coordinates: Tensor
    key_coordinates: Tensor
    farthest: tuple[int, ...]
    class_token: bool = False

    def tensors(self) -> dict[str, Tensor]:
        return {
            "table": self.table,
            "query_coordinates": self.query_coordinates,
            "key_coordinates": self.key_coordinates,
        }

    def differentiable(self) -> list[str]:
        return ["table"]

    def axes(self, name: str) -> Axes:
        return (None, "heads") if name == "table" else ("batch", None, None)

    def with_tensors(self, tensors: dict[str, Tensor]) -> "GridBias":
        return dataclasses.replace(self, **tensors)

    def map_queries(self, change: Callable[[Tensor, int], Tensor]) -> "GridBias":
        if self.query_coordinates.shape[1] == 1:
            return self
        return dataclasses.replace(self, query_coordinates=change(self.query_coordinates, 1))

    def with_head_tensors(self) -> "GridBias":
        return self

    def in_precision(self, dtype: str) -> "GridBias":
        return self

    def block(self, mask: AttentionMask, rows: Span, columns: Columns) -> Tensor:
        """(B|1, N, t, s)."""
        by_head = ops.transpose(ops.cast(self.table, accumulator_of(self.table.dtype)))  # (N, E)
        found = ops.take(by_head, self.entries(rows, columns), axis=1)  # (N, B|1, t, s)
        return ops.moveaxis(found, 0, 1)  # (B|1, N, t, s)

    def block_gradient(
        self, gradient: Tensor, mask: AttentionMask, rows: Span, columns: Columns
    ) -> dict[str, Tensor]:
        entries = self.entries(rows, columns)  # (B|1, t, s)
        return {"table": sum_by_entry(gradient, entries, self.table.shape[0])}

    def entries(self, rows: Span, columns: Columns) -> Tensor:
        """(B|1, t, s) int32: the entry of each pair in the table."""
        queries = slice_axis(self.query_coordinates, 1, rows)  # (B|1, t, axes)
        keys = slice_axis(self.key_coordinates, 1, columns)  # (B|1, s, axes)
        entry: Tensor = 0
        for axis, farthest in enumerate(self.farthest):
            offsets = queries[:, :, None, axis] - keys[:, None, :, axis]  # (B|1, t, s)
            entry = entry * (2 * farthest + 1) + clipped(offsets, farthest)  # (B|1, t, s)
        if not self.class_token:
            return entry
        of_query, of_key, of_both = range(entries_of(self.farthest), self.table.shape[0])
        is_query, is_key = queries[:, :, None, -1] > 0, keys[:, None, :, -1] > 0
        entry = ops.where(is_key, of_key, entry)  # (B|1, t, s)
        return ops.where(is_query, ops.where(is_key, of_both, of_query), entry)  # (B|1, t, s)


def with_class_token(coordinates: Tensor) -> Tensor:
    """Positions (B|1, T, axes) with one number more, 1 for the first token, else 0."""
    none = ops.zeros_like(coordinates[:, :, :1])  # (B|1, T, 1)
    marks = ops.concatenate([none[:, :1] + 1, none[:, 1:]], axis=1)  # (B|1, T, 1)
    return ops.concatenate([coordinates, marks], axis=-1)  # (B|1, T, axes + 1)


def entries_of(farthest: tuple[int, ...]) -> int:
    """The number of combinations of offsets."""
    return math.prod(2 * each + 1 for each in farthest)
