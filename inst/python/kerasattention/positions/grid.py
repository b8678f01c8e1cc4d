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
    """

    table: Tensor
    query_coordinates: Tensor
    key_coordinates: Tensor
    farthest: tuple[int, ...]

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
        return {"table": sum_by_entry(gradient, entries, entries_of(self.farthest))}

    def entries(self, rows: Span, columns: Columns) -> Tensor:
        """(B|1, t, s) int32: the entry of each pair in the table."""
        queries = slice_axis(self.query_coordinates, 1, rows)  # (B|1, t, axes)
        keys = slice_axis(self.key_coordinates, 1, columns)  # (B|1, s, axes)
        entry: Tensor = 0
        for axis, farthest in enumerate(self.farthest):
            offsets = queries[:, :, None, axis] - keys[:, None, :, axis]  # (B|1, t, s)
            entry = entry * (2 * farthest + 1) + clipped(offsets, farthest)  # (B|1, t, s)
        return entry


def entries_of(farthest: tuple[int, ...]) -> int:
    """The number of combinations of offsets."""
    return math.prod(2 * each + 1 for each in farthest)
