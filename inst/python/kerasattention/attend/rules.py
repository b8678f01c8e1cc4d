"""The rules of an attention mask: one class each, all with the interface of `MaskRule`.

A mask is the conjunction of its rules (`mask.py`). A new rule is a class here or anywhere else; it
is given to `AttentionMask(further_rules=...)`, and no kernel has to know it.
"""

import dataclasses
import functools
from collections.abc import Hashable
from typing import Any, NamedTuple, Protocol

from keras import ops

from kerasattention.attend.intervals import (
    EVERYWHERE,
    FAR,
    NOWHERE,
    Intervals,
    covers,
    intersection,
    interval,
)
from kerasattention.attend.tensors import Columns, Span, Tensor, slice_axis


class Reach(NamedTuple):
    """How far from its own position a query may see keys, on each side; None for any distance.

    The methods take and give indices of tokens: numbers, arrays or tensors. They are for positions
    that are indices.
    """

    before: int | None
    after: int | None
    offset: Any = 0

    @property
    def window(self) -> int | None:
        """Number of positions up to its own that a query may see."""
        return None if self.before is None else self.before + 1

    @property
    def width(self) -> int | None:
        """Number of positions that a query may see, if both sides are limited."""
        if self.before is None or self.after is None:
            return None
        return self.before + 1 + self.after

    def first_key(self, query: Any) -> Any:
        """The first key that a query may see, where `before` is limited."""
        return query + self.offset - self.before

    def stop_key(self, query: Any) -> Any:
        """The key behind the last that a query may see, where `after` is limited."""
        return query + self.offset + self.after + 1


class Positions(Protocol):
    """The positions of queries and keys, which an `AttentionMask` knows."""

    def block_positions(self, rows: Span, columns: Columns) -> tuple[Tensor, Tensor]:
        """Positions of queries (B|1, 1, t, 1) and of keys (B|1, 1, 1, s)."""
        ...

    def distances(self, rows: Span, columns: Columns) -> Tensor:
        """Key position less query position, (B|1, 1, t, s)."""
        ...


class MaskRule:
    """A condition under which a query may attend a key.

    Attributes:
        argument: Name of the argument that asks for it, for messages.
        compares_positions: Whether it compares positions; otherwise it holds a tensor of tokens.
        reach: No key further than this from its own position is visible to a query.
        is_band: Whether exactly the keys within its reach are visible.
        is_relative: Whether it compares nothing but the distance of a key and a query.
        lookahead: No key after its own position is visible to a query whose position is this
            number or larger; None where that is not known.
        is_exact: Whether `lookahead` also holds of positions that are no integers. A window of 1
            and a chunk of 1 let a query see keys that are less than 1 behind it.
        differs_by_query: Whether the queries of a sample may see different keys, where the rule
            does not compare positions.
        is_per_token: Whether it holds tensors (B, T) and (B, S), where it does not compare
            positions.
        num_heads: 1 where all heads see the same keys, otherwise N.
    """

    argument: str = "a mask rule"
    compares_positions: bool = True
    reach: Reach = Reach(None, None)
    is_band: bool = False
    is_relative: bool = False
    is_exact: bool = False
    differs_by_query: bool = True
    is_per_token: bool = False
    num_heads: int = 1

    def block_mask(self, positions: Positions, rows: Span, columns: Columns) -> Tensor:
        """Booleans that broadcast to (B, N, t, s): whether a query sees a key.

        Args:
            positions: Of queries and keys.
            rows: The queries of the block.
            columns: The keys of the block.
        """
        raise NotImplementedError

    # For positions that are integers known before anything is computed.

    def visible_keys(self, first: int, last: int) -> Intervals:
        """Positions of keys; all others are masked out for the queries `first` to `last`."""
        before, after, _ = self.reach
        if before is None and after is None:
            return EVERYWHERE
        return interval(
            -FAR if before is None else first - before, FAR if after is None else last + after + 1
        )

    def certain_keys(self, first: int, last: int) -> Intervals:
        """Positions of keys that each of the queries `first` to `last` sees."""
        if not self.is_band:
            return NOWHERE
        before, after, _ = self.reach
        return interval(
            -FAR if before is None else last - before, FAR if after is None else first + after + 1
        )

    def signature(self, first: int, last: int, start: int, stop: int) -> Hashable:
        """Equal for two blocks of one size only if their masks are equal.

        Args:
            first: Position of the first query of the block.
            last: Of the last.
            start: Position of the first key.
            stop: That behind the last.
        """
        if covers(self.certain_keys(first, last), start, stop):
            return "all"
        if not intersection(self.visible_keys(first, last), interval(start, stop)):
            return "none"
        return start - first if self.is_relative else (first, start)

    @property
    def lookahead(self) -> int | None:
        after = self.reach.after
        return 0 if after is not None and after <= 0 else None


@dataclasses.dataclass(frozen=True)
class CausalRule(MaskRule):
    """No key after the query's own position is visible."""

    argument = "causal"
    reach = Reach(None, 0)
    is_band = True
    is_relative = True
    is_exact = True

    def block_mask(self, positions: Positions, rows: Span, columns: Columns) -> Tensor:
        queries, keys = positions.block_positions(rows, columns)
        return keys <= queries  # (B|1, 1, t, s)


@dataclasses.dataclass(frozen=True)
class WindowRule(MaskRule):
    """Keys closer than `before` positions before a query and `after` behind it are visible."""

    before: int
    after: int

    argument = "sliding_window"
    is_band = True
    is_relative = True

    @property
    def reach(self) -> Reach:
        return Reach(self.before - 1, self.after - 1)

    def block_mask(self, positions: Positions, rows: Span, columns: Columns) -> Tensor:
        distances = positions.distances(rows, columns)  # (B|1, 1, t, s)
        if self.before == self.after:
            return ops.abs(distances) < self.before  # (B|1, 1, t, s)
        return ops.logical_and(distances > -self.before, distances < self.after)  # (B|1, 1, t, s)


@dataclasses.dataclass(frozen=True, eq=False)
class PaddingRule(MaskRule):
    """Keys that are padding are masked out.

    Attributes:
        real: (B, S) booleans, False for padding.
    """

    real: Tensor

    argument = "a mask of padding"
    compares_positions = False
    differs_by_query = False
    is_per_token = True

    def block_mask(self, positions: Positions, rows: Span, columns: Columns) -> Tensor:
        return slice_axis(self.real, 1, columns)[:, None, None, :]  # (B, 1, 1, s)


@dataclasses.dataclass(frozen=True, eq=False)
class SegmentRule(MaskRule):
    """Tokens see only their own segment; segment 0 is padding.

    Attributes:
        queries: (B, T) integers.
        keys: (B, S) integers.
    """

    queries: Tensor
    keys: Tensor

    argument = "segment_ids"
    compares_positions = False
    is_per_token = True

    def block_mask(self, positions: Positions, rows: Span, columns: Columns) -> Tensor:
        queries = slice_axis(self.queries, 1, rows)[:, None, :, None]  # (B, 1, t, 1)
        keys = slice_axis(self.keys, 1, columns)[:, None, None, :]  # (B, 1, 1, s)
        return ops.logical_and(ops.equal(queries, keys), ops.not_equal(keys, 0))  # (B, 1, t, s)


@dataclasses.dataclass(frozen=True, eq=False)
class ExplicitRule(MaskRule):
    """A mask given as a tensor.

    Attributes:
        visible: (B|1, N|1, T|1, S|1) booleans.
    """

    visible: Tensor

    argument = "attention_mask"
    compares_positions = False

    @property
    def differs_by_query(self) -> bool:
        return self.visible.shape[2] != 1

    @property
    def num_heads(self) -> int:
        return self.visible.shape[1]

    def block_mask(self, positions: Positions, rows: Span, columns: Columns) -> Tensor:
        return slice_axis(slice_axis(self.visible, 2, rows), 3, columns)  # (B|1, N|1, t|1, s|1)


@dataclasses.dataclass(frozen=True, eq=False)
class BidirectionalRule(MaskRule):
    """Tokens see those that the rules of positions say, and those of their own span.

    Which keys are visible is known only with the ids (`bidirectional.py`).

    Attributes:
        queries: (B, T) integers; tokens with the same number above 0 are a span.
        keys: (B, S) integers.
        rules: The rules of positions, all of which must hold outside a span; at least one.
    """

    queries: Tensor
    keys: Tensor
    rules: tuple[MaskRule, ...]

    argument = "bidirectional"
    compares_positions = False

    def block_mask(self, positions: Positions, rows: Span, columns: Columns) -> Tensor:
        queries = slice_axis(self.queries, 1, rows)[:, None, :, None]  # (B, 1, t, 1)
        keys = slice_axis(self.keys, 1, columns)[:, None, None, :]  # (B, 1, 1, s)
        # Tokens of no span are unequal, so that one comparison of all pairs is enough.
        queries = ops.where(queries > 0, queries, -1)  # (B, 1, t, 1)
        keys = ops.where(keys > 0, keys, -2)  # (B, 1, 1, s)
        same = ops.equal(queries, keys)  # (B, 1, t, s)
        by_position = [rule.block_mask(positions, rows, columns) for rule in self.rules]
        seen = functools.reduce(ops.logical_and, by_position)  # (B|1, 1, t, s)
        return ops.logical_or(same, seen)  # (B, 1, t, s)
