"""Who sees whom: one description of every mask, asked for block by block.

A query sees a key when all of these allow it: the causal rule, the sliding
window, the key's padding mask, the segments of both and the explicit mask.
Causal rule and window compare positions; where none are given a token's
position is its index, for queries plus `offset`.

A new kind of mask is added here and nowhere else.
"""

import dataclasses
import functools
from typing import Any

from keras import ops

from kerasattention.attend.tensors import Span, Tensor, is_static, slice_axis

_TENSOR_FIELDS = (
    "query_positions",
    "key_positions",
    "query_mask",
    "key_mask",
    "query_segments",
    "key_segments",
    "mask",
)


@dataclasses.dataclass(frozen=True)
class AttentionMask:
    """Describes which keys each query may attend.

    Attributes:
        causal: A query sees no key behind its own position.
        window: A query sees keys closer than this many positions.
        offset: Position of the first query where `query_positions` is None.
        query_positions: None, (T) or (B, T) integers.
        key_positions: None, (S) or (B, S) integers.
        query_mask: None or (B, T) booleans; False marks padding, which sees nothing.
        key_mask: None or (B, S) booleans; False marks padding, which nobody sees.
        query_segments: None or (B, T) integers; 0 marks padding.
        key_segments: None or (B, S) integers.
        mask: None or booleans that broadcast to (B, N, T, S), of rank 4.
        masked_out_is_finite: Whether queries and keys that are masked out are known to hold
            finite numbers, as in a cache, so that nobody has to look.
    """

    causal: bool = False
    window: int | None = None
    offset: Any = 0
    query_positions: Tensor | None = None
    key_positions: Tensor | None = None
    query_mask: Tensor | None = None
    key_mask: Tensor | None = None
    query_segments: Tensor | None = None
    key_segments: Tensor | None = None
    mask: Tensor | None = None
    masked_out_is_finite: bool = False

    def tensors(self) -> dict[str, Tensor]:
        """The tensors it holds by name, for a function transform that must see them."""
        fields = {name: getattr(self, name) for name in _TENSOR_FIELDS}
        return {name: x for name, x in fields.items() if x is not None}

    def with_tensors(self, tensors: dict[str, Tensor]) -> "AttentionMask":
        return dataclasses.replace(self, **tensors)

    def without_tensors(self) -> "AttentionMask":
        return dataclasses.replace(self, **dict.fromkeys(_TENSOR_FIELDS))

    @property
    def positions_are_indices(self) -> bool:
        """Whether causal rule and window can be read off the indices alone."""
        return (
            self.query_positions is None
            and self.key_positions is None
            and isinstance(self.offset, int)
        )

    @property
    def by_position(self) -> bool:
        """Whether any rule compares positions."""
        return self.causal or self.window is not None

    def key_range(self, rows: Span, length: int) -> Span:
        """The keys outside of which these queries see nothing."""
        if not self.positions_are_indices:
            return Span(0, length)
        first, last = 0, length
        if self.window is not None:
            first = max(first, rows.start + self.offset - self.window + 1)
            last = min(last, rows.stop + self.offset + self.window - 1)
        if self.causal:
            last = min(last, rows.stop + self.offset)
        first = min(first, length)
        return Span(first, max(last - first, 0))

    def hides_by_position(self, rows: Span, columns: Span) -> bool:
        """Whether causal rule or window hides any of these keys from any of these queries."""
        if not self.by_position:
            return False
        if not (self.positions_are_indices and is_static(*rows, *columns)):
            return True
        low, high = rows.start + self.offset, rows.stop - 1 + self.offset
        first, last = columns.start, columns.stop - 1
        hidden = self.causal and last > low
        if self.window is not None:
            hidden = hidden or high - first >= self.window
            hidden = hidden or (not self.causal and last - low >= self.window)
        return hidden

    @property
    def may_leave_a_query_without_keys(self) -> bool:
        """False only where it is certain that every query sees a key."""
        return self.hides_by_content or self.window is not None or not self.positions_are_indices

    @property
    def hides_by_content(self) -> bool:
        """Whether padding, segments or an explicit mask are given for the keys."""
        return self.key_mask is not None or self.query_segments is not None or self.mask is not None

    def block(self, rows: Span, columns: Span) -> Tensor | None:
        """The mask of a run of queries against a run of keys.

        Returns:
            Booleans that broadcast to (B, N, t, s), or None where all is visible.
        """
        masks = []
        if self.hides_by_position(rows, columns):
            masks.append(self._position_block(rows, columns))
        if self.key_mask is not None:
            masks.append(slice_axis(self.key_mask, 1, columns)[:, None, None, :])
        if self.query_segments is not None:
            masks.append(self._segment_block(rows, columns))
        if self.mask is not None:
            masks.append(slice_axis(slice_axis(self.mask, 2, rows), 3, columns))
        return functools.reduce(ops.logical_and, masks) if masks else None

    def positions_of_queries(self, rows: Span) -> Tensor:
        """(t) or (B, t)."""
        return _positions(self.query_positions, self.offset, rows)

    def positions_of_keys(self, columns: Span) -> Tensor:
        """(s) or (B, s)."""
        return _positions(self.key_positions, 0, columns)

    def distances(self, rows: Span, columns: Span) -> Tensor:
        """Key position less query position: (1, 1, t, s) or (B, 1, t, s)."""
        queries = _with_batch(self.positions_of_queries(rows))[:, None, :, None]
        keys = _with_batch(self.positions_of_keys(columns))[:, None, None, :]
        return keys - queries

    def _position_block(self, rows: Span, columns: Span) -> Tensor:
        distances = self.distances(rows, columns)
        rules = []
        if self.causal:
            rules.append(distances <= 0)
        if self.window is not None:
            rules.append(ops.abs(distances) < self.window)
        return functools.reduce(ops.logical_and, rules)

    def _segment_block(self, rows: Span, columns: Span) -> Tensor:
        queries = slice_axis(self.query_segments, 1, rows)[:, None, :, None]
        keys = slice_axis(self.key_segments, 1, columns)[:, None, None, :]
        return ops.logical_and(ops.equal(queries, keys), ops.not_equal(keys, 0))


def _positions(given: Tensor | None, offset: Any, span: Span) -> Tensor:
    if given is None:
        return ops.arange(span.size, dtype="int32") + (span.start + offset)
    given = ops.cast(given, "int32")
    return slice_axis(given, len(given.shape) - 1, span)


def _with_batch(positions: Tensor) -> Tensor:
    return positions if len(positions.shape) == 2 else positions[None]
