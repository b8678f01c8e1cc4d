"""Which row of a table each pair of a query and a key in a block has, by their distance.

`Diagonals` is for positions that grow by one, where the pairs of a diagonal share a distance;
`Pairs` is for any positions, `Uniform` for keys beyond the largest distance. Shape letters as in
`attend/tensors.py`; L is the number of diagonals of a block, t + s - 1, and E the number of rows
of a table.
"""

import dataclasses
from typing import Any, Protocol

import keras
import numpy as np
from keras import ops

from kerasattention.attend.mask import AttentionMask
from kerasattention.attend.tensors import (
    Columns,
    Span,
    Tensor,
    is_compiled_by_xla,
    is_static,
    one_span,
    segment_sum,
    shape_of,
)
from kerasattention.positions.buckets import diagonal_distances, is_consecutive
from kerasattention.positions.lookup import clipped


class Offsets(Protocol):
    """The rows of a table that a block of queries and keys has, L of them."""

    def rows(self, table: Tensor) -> Tensor:
        """(E, ...) to (L, ...), those that the block has."""
        ...

    def rows_gradient(self, gradient: Tensor, count: int) -> Tensor:
        """(L, X), of the rows, to (E, X), of the table."""
        ...

    def spread(self, products: Tensor) -> Tensor:
        """Products of each query with each row, (B, N, t, L), to those of pairs (B, N, t, s)."""
        ...

    def collect(self, gradient: Tensor) -> Tensor:
        """(B, N, t, s) to (B, N, t, L): the transpose of `spread()`."""
        ...

    def of_keys(self) -> "Offsets":
        """The same, with the keys in the place of the queries."""
        ...


def offsets_of(
    entries: tuple[int, ...], mask: AttentionMask, rows: Span, columns: Columns
) -> Offsets:
    """Of a block.

    Args:
        entries: The row of each distance from -M to M; farther ones share the ends.
    """
    lookup = np.array(entries, dtype="int32")  # (2 M + 1)
    if is_consecutive(mask, rows, columns):
        distances = diagonal_distances(mask, rows, columns)  # (L)
        found = _look_up(lookup, distances)  # (L)
        return Diagonals(found, rows.size, columns.size)
    distances = mask.distances(rows, columns)[:, 0]  # (B|1, t, s)
    return Pairs(_look_up(lookup, distances), max(entries) + 1)


def divided(
    mask: AttentionMask, farthest: int, rows: Span, columns: Columns
) -> list[tuple[Columns, int | None]]:
    """The keys of a block in parts, with -1 or 1 for keys that all lie beyond a distance.

    Those share one row of a table, whatever their number. Only where positions are indices, and
    sizes are numbers or, on TensorFlow, tensors. At T = 16,384 most keys are that far.
    """
    numbers = [*rows, *columns] if isinstance(columns, Span) else [None]
    known = is_static(*numbers)
    if not (mask.positions_are_indices and (known or _may_vary(columns))):
        return [(columns, None)]
    first = rows.start + mask.offset
    stop = first + rows.size - 1 + farthest
    start, end = one_span(columns).start, one_span(columns).stop
    low = _between(first - farthest + 1, start, end, known)
    high = _between(stop, low, end, known)
    parts = [(Span(start, low - start), -1), (Span(low, high - low), None)]
    parts.append((Span(high, end - high), 1))
    return [(span, side) for span, side in parts if not known or span.size > 0]


def _may_vary(columns: Columns) -> bool:
    """Whether sizes may be tensors: on TensorFlow, but not where XLA compiles."""
    if keras.backend.backend() != "tensorflow" or not isinstance(columns, Span):
        return False
    return not is_compiled_by_xla()


def _between(x: Any, least: Any, most: Any, known: bool) -> Any:
    if known:
        return min(max(x, least), most)
    return ops.minimum(ops.maximum(x, least), most)


def _look_up(lookup: np.ndarray, distances: Tensor) -> Tensor:
    places = clipped(distances, len(lookup) // 2)  # (...)
    return ops.take(ops.convert_to_tensor(lookup), places, axis=0)  # (...)


@dataclasses.dataclass(frozen=True)
class Uniform:
    """One row for all pairs; `spread()` gives (B, N, t, 1), which broadcasts.

    Attributes:
        entry: Its number.
    """

    entry: int

    def rows(self, table: Tensor) -> Tensor:
        return table[self.entry : self.entry + 1]  # (1, ...)

    def rows_gradient(self, gradient: Tensor, count: int) -> Tensor:
        return ops.pad(gradient, [(self.entry, count - 1 - self.entry), (0, 0)])  # (E, X)

    def spread(self, products: Tensor) -> Tensor:
        return products  # (B, N, t, 1)

    def collect(self, gradient: Tensor) -> Tensor:
        return ops.sum(gradient, axis=-1, keepdims=True)  # (B, N, t, 1)

    def of_keys(self) -> "Uniform":
        return self


@dataclasses.dataclass(frozen=True)
class Diagonals:
    """The row of each diagonal of a block, from the lowest distance on.

    Attributes:
        entries: (L) int32.
        queries: t.
        keys: s.
    """

    entries: Tensor
    queries: int
    keys: int

    def rows(self, table: Tensor) -> Tensor:
        return ops.take(table, self.entries, axis=0)  # (L, ...)

    def rows_gradient(self, gradient: Tensor, count: int) -> Tensor:
        return segment_sum(gradient, self.entries, count)  # (E, X)

    def spread(self, products: Tensor) -> Tensor:
        """Reshaping rows of length L into rows of length L - 1 moves each by one more step."""
        if self.queries == 1:
            return products  # (B, N, 1, s)
        batch, heads, rows, length = shape_of(products)
        flat = ops.reshape(products, (batch, heads, rows * length))  # (B, N, t * L)
        end = rows - 1 + rows * (length - 1)
        moved = ops.reshape(
            flat[:, :, rows - 1 : end], (batch, heads, rows, length - 1)
        )  # (B, N, t, L - 1)
        return moved[:, :, :, : self.keys]  # (B, N, t, s)

    def collect(self, gradient: Tensor) -> Tensor:
        if self.queries == 1:
            return gradient  # (B, N, 1, s)
        batch, heads, rows, columns = shape_of(gradient)
        length = rows + columns - 1
        none = (0, 0)
        wide = ops.pad(gradient, [none, none, none, (0, length - 1 - columns)])  # (B, N, t, L - 1)
        flat = ops.reshape(wide, (batch, heads, rows * (length - 1)))  # (B, N, t * (L - 1))
        flat = ops.pad(flat, [none, none, (rows - 1, 1)])  # (B, N, t * L)
        return ops.reshape(flat, (batch, heads, rows, length))  # (B, N, t, L)

    def of_keys(self) -> "Diagonals":
        return Diagonals(ops.flip(self.entries, axis=0), self.keys, self.queries)


@dataclasses.dataclass(frozen=True)
class Pairs:
    """The row of each pair.

    Attributes:
        entries: (B|1, t, s) int32.
        count: E.
    """

    entries: Tensor
    count: int

    def rows(self, table: Tensor) -> Tensor:
        return table

    def rows_gradient(self, gradient: Tensor, count: int) -> Tensor:
        return gradient

    def spread(self, products: Tensor) -> Tensor:
        batch, heads, _, _ = shape_of(products)
        _, queries, keys = shape_of(self.entries)
        index = ops.broadcast_to(self.entries[:, None], (batch, heads, queries, keys))
        return ops.take_along_axis(products, index, axis=-1)  # (B, N, t, s)

    def collect(self, gradient: Tensor) -> Tensor:
        batch, heads, queries, keys = shape_of(gradient)
        lines = batch * heads * queries
        first = ops.reshape(
            ops.arange(lines, dtype="int32") * self.count, (batch, heads, queries, 1)
        )  # (B, N, t, 1)
        index = ops.reshape(first + self.entries[:, None], (-1,))  # (B * N * t * s)
        flat = ops.reshape(gradient, (lines * keys, 1))  # (B * N * t * s, 1)
        sums = segment_sum(flat, index, lines * self.count)  # (B * N * t * E, 1)
        return ops.reshape(sums, (batch, heads, queries, self.count))  # (B, N, t, E)

    def of_keys(self) -> "Pairs":
        return Pairs(ops.swapaxes(self.entries, 1, 2), self.count)
