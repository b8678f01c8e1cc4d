"""The rules of an attention mask: one class each, all with the interface of `MaskRule`.

A mask is the conjunction of its rules (`mask.py`). A new rule is a class here or anywhere else; it
is given to `AttentionMask(further_rules=...)`, and no kernel has to know it.
"""

import dataclasses
from typing import Any, NamedTuple, Protocol

from keras import ops

from kerasattention.attend.tensors import Span, Tensor, slice_axis


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

    def block_positions(self, rows: Span, columns: Span) -> tuple[Tensor, Tensor]:
        """Positions of queries (B|1, 1, t, 1) and of keys (B|1, 1, 1, s)."""
        ...

    def distances(self, rows: Span, columns: Span) -> Tensor:
        """Key position less query position, (B|1, 1, t, s)."""
        ...


class MaskRule:
    """A condition under which a query may attend a key.

    Attributes:
        argument: Name of the argument that asks for it, for messages.
        compares_positions: Whether it compares positions; otherwise it holds a tensor of tokens.
        before: No key further than this before its own position is visible to a query; None where
            that is not limited.
        after: The same of keys after its own position.
        is_band: Whether exactly the keys within `before` and `after` are visible.
        differs_by_query: Whether the queries of a sample may see different keys, where the rule
            does not compare positions.
        is_per_token: Whether it holds tensors (B, T) and (B, S), where it does not compare
            positions.
        num_heads: 1 where all heads see the same keys, otherwise N.
    """

    argument: str = "a mask rule"
    compares_positions: bool = True
    before: int | None = None
    after: int | None = None
    is_band: bool = False
    differs_by_query: bool = True
    is_per_token: bool = False
    num_heads: int = 1

    def block_mask(self, positions: Positions, rows: Span, columns: Span) -> Tensor:
        """Booleans that broadcast to (B, N, t, s): whether a query sees a key.

        Args:
            positions: Of queries and keys.
            rows: The queries of the block.
            columns: The keys of the block.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class CausalRule(MaskRule):
    """No key after the query's own position is visible."""

    argument = "causal"
    after = 0
    is_band = True

    def block_mask(self, positions: Positions, rows: Span, columns: Span) -> Tensor:
        queries, keys = positions.block_positions(rows, columns)
        return keys <= queries  # (B|1, 1, t, s)


@dataclasses.dataclass(frozen=True)
class WindowRule(MaskRule):
    """Keys closer than `size` positions are visible, on both sides."""

    size: int

    argument = "sliding_window"
    is_band = True

    @property
    def before(self) -> int:
        return self.size - 1

    @property
    def after(self) -> int:
        return self.size - 1

    def block_mask(self, positions: Positions, rows: Span, columns: Span) -> Tensor:
        return ops.abs(positions.distances(rows, columns)) < self.size  # (B|1, 1, t, s)


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

    def block_mask(self, positions: Positions, rows: Span, columns: Span) -> Tensor:
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

    def block_mask(self, positions: Positions, rows: Span, columns: Span) -> Tensor:
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

    def block_mask(self, positions: Positions, rows: Span, columns: Span) -> Tensor:
        return slice_axis(slice_axis(self.visible, 2, rows), 3, columns)  # (B|1, N|1, t|1, s|1)
