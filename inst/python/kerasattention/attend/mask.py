"""`AttentionMask`: which keys each query may attend, asked for block by block.

A mask is the conjunction of rules (`rules.py`): the causal rule, the sliding window, further rules
that compare positions, padding, segments and an explicit mask. Kernels ask it questions and read
none of its fields, so that a new rule changes no kernel. A token's position is its index where no
positions are given, for queries plus `offset`.

Spans of tokens that see each other whatever the rules of positions say turn these into one rule of
tokens: then no key can be left out before their ids are known (`bidirectional.py`).

More than 300 lines: all questions that kernels ask are methods of one class.
"""

import dataclasses
import functools
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import keras
from keras import ops

from kerasattention.attend import intervals, rules
from kerasattention.attend.bidirectional import known_range
from kerasattention.attend.intervals import Intervals
from kerasattention.attend.rules import MaskRule, Reach
from kerasattention.attend.tensors import (
    Axes,
    Columns,
    KeySpans,
    Span,
    Tensor,
    indices_of,
    is_static,
    one_span,
    slice_axis,
    spans_of,
)

# Keys that are masked out between two spans: to compute fewer takes less time than to leave them
# out.
LEAST_GAP = 32
# Queries and blocks at which the number of visible keys is looked up, to choose a block size.
_PROBE_ROWS = 32
_PROBES = 16

_TENSOR_FIELDS = (
    *("query_positions", "key_positions", "query_mask", "key_mask"),
    *("query_segments", "key_segments", "query_bidirectional", "key_bidirectional", "mask"),
)


class _BlockPositions(NamedTuple):
    """The positions of one block, computed once for all rules."""

    queries: Tensor
    keys: Tensor

    def block_positions(self, rows: Span, columns: Columns) -> tuple[Tensor, Tensor]:
        return self.queries, self.keys

    def distances(self, rows: Span, columns: Columns) -> Tensor:
        return self.keys - self.queries  # (B|1, 1, t, s)


@dataclasses.dataclass(frozen=True)
class AttentionMask:
    """Describes which keys each query may attend.

    Attributes:
        causal: A query sees no key after its own position.
        window: A query sees keys closer than this many positions.
        offset: Position of the first query where `query_positions` is None.
        query_positions: None, (T) or (B, T) integers or real numbers.
        key_positions: None, (S) or (B, S) of them.
        query_mask: None or (B, T) booleans; False marks padding, whose output is zero.
        key_mask: None or (B, S) booleans; False marks padding, which no query sees.
        query_segments: None or (B, T) integers; 0 marks padding.
        key_segments: None or (B, S) integers.
        query_bidirectional: None or (B, T) integers; tokens with the same number above 0 see each
            other whatever the rules of positions say.
        key_bidirectional: None or (B, S) integers.
        mask: None or booleans that broadcast to (B, N, T, S), of rank 4.
        masked_out_is_finite: Whether queries and keys that are masked out are known to hold finite
            numbers, as in a cache.
        further_rules: Other rules that compare positions. They are hashable.
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
    query_bidirectional: Tensor | None = None
    key_bidirectional: Tensor | None = None
    mask: Tensor | None = None
    masked_out_is_finite: bool = False
    further_rules: tuple[MaskRule, ...] = ()

    # The rules ------------------------------------------------------------------------

    @functools.cached_property
    def position_rules(self) -> tuple[MaskRule, ...]:
        """The rules that compare positions and nothing else."""
        return self._rules_outside_spans if self.query_bidirectional is None else ()

    @functools.cached_property
    def _rules_outside_spans(self) -> tuple[MaskRule, ...]:
        """The causal rule, the window and the further rules."""
        causal = (rules.CausalRule(),) if self.causal else ()
        window = () if self.window is None else (rules.WindowRule(self.window, self.window),)
        return (*causal, *window, *self.further_rules)

    @functools.cached_property
    def token_rules(self) -> tuple[MaskRule, ...]:
        """The rules that hold a tensor of tokens."""
        found: list[MaskRule] = []
        if self.key_mask is not None:
            found.append(rules.PaddingRule(self.key_mask))
        if self.query_segments is not None:
            found.append(rules.SegmentRule(self.query_segments, self.key_segments))
        if self.query_bidirectional is not None and self._rules_outside_spans:
            spans = self.query_bidirectional, self.key_bidirectional
            found.append(rules.BidirectionalRule(*spans, self._rules_outside_spans))
        if self.mask is not None:
            found.append(rules.ExplicitRule(self.mask))
        return tuple(found)

    # Questions about a block ----------------------------------------------------------

    def key_range(self, rows: Span, length: int) -> Span:
        """The first to the last key that these queries may attend."""
        spans = self.key_spans(rows, length)
        if not spans:
            return Span(0, 0)
        return Span(spans[0].start, spans[-1].stop - spans[0].start)

    def key_spans(self, rows: Span, length: int) -> tuple[Span, ...]:
        """The keys that these queries may attend, as spans in order; all others are masked out."""
        if not self.positions_are_indices:
            return (Span(0, length),) if length else ()
        if self.query_bidirectional is not None:
            found = known_range(self, rows, length)
            if found is not None:
                return (found,) if found.size else ()
        first, last = rows.start + self.offset, rows.stop - 1 + self.offset
        visible = _visible_keys(self.position_rules, first, last)
        if len(visible) > 1:
            visible = intervals.union(visible, (), LEAST_GAP)
        within = intervals.intersection(visible, intervals.interval(0, length))
        return tuple(Span(start, stop - start) for start, stop in within)

    def key_columns(self, rows: Span, length: int) -> Columns:
        """`key_spans()` for a kernel that computes all of them as one."""
        spans = self.key_spans(rows, length)
        if len(spans) > 1:
            return KeySpans(spans)
        return spans[0] if spans else Span(0, 0)

    def masks_positions(self, rows: Span, columns: Columns) -> bool:
        """Whether a rule of positions may mask a key of a block out for one of its queries."""
        return any(self._masks(rule, rows, columns) for rule in self.position_rules)

    def _masks(self, rule: MaskRule, rows: Span, columns: Columns) -> bool:
        """Whether a rule of positions may mask a key of a block out."""
        bounds = [number for span in spans_of(columns) for number in span]
        if not (self.positions_are_indices and is_static(*rows, *bounds)):
            return True
        first, last = rows.start + self.offset, rows.stop - 1 + self.offset
        certain = rule.certain_keys(first, last)
        return not all(
            intervals.covers(certain, span.start, span.stop) for span in spans_of(columns)
        )

    def block_signature(self, rows: Span, columns: Columns) -> Hashable:
        """Equal for two blocks of one size only if rules of positions give them equal masks.

        For positions that are indices.
        """
        first, last = rows.start + self.offset, rows.stop - 1 + self.offset
        return tuple(
            rule.signature(first, last, span.start, span.stop)
            for rule in self.position_rules
            for span in spans_of(columns)
        )

    def block_mask(self, rows: Span, columns: Columns) -> Tensor | None:
        """The mask of a block.

        Returns:
            Booleans that broadcast to (B, N, t, s), or None where all is visible.
        """
        masks = []
        masking = [rule for rule in self.position_rules if self._masks(rule, rows, columns)]
        if masking:
            positions = _BlockPositions(*self.block_positions(rows, columns))
            masks = [rule.block_mask(positions, rows, columns) for rule in masking]
        masks += [rule.block_mask(self, rows, columns) for rule in self.token_rules]
        return functools.reduce(ops.logical_and, masks) if masks else None  # (B|1, N|1, t|1, s|1)

    def may_leave_empty(self, rows: Span, keys: Any) -> bool:
        """Whether one of these queries may see none of all keys."""
        if self.token_rules or not (self.is_band and self.positions_are_indices):
            return True
        before, after, offset = self.reach
        if before is None:
            return after is not None and offset + after < 0
        if not is_static(*rows, keys):
            return True
        before_all = after is not None and self.reach.stop_key(rows.start) <= 0
        return self.reach.first_key(rows.stop - 1) >= keys or before_all

    # Questions about the whole --------------------------------------------------------

    @functools.cached_property
    def reach(self) -> Reach:
        """How far from its own position the rules of positions let a query see."""
        return self._reach_of(self.position_rules)

    @functools.cached_property
    def reach_outside_spans(self) -> Reach:
        """The same where tokens of a span see each other, for all other keys."""
        return self._reach_of(self._rules_outside_spans)

    def _reach_of(self, of: tuple[MaskRule, ...]) -> Reach:
        reaches = [rule.reach for rule in of]
        befores = [reach.before for reach in reaches if reach.before is not None]
        afters = [reach.after for reach in reaches if reach.after is not None]
        return Reach(min(befores, default=None), min(afters, default=None), self.offset)

    def usual_window(self, length: Any, keys: Any) -> int | None:
        """About how many keys a query may see up to its own, for the size of blocks; None: all."""
        if self.is_band or not (self.positions_are_indices and is_static(length, keys)):
            return self.reach.window
        size = min(_PROBE_ROWS, length)
        starts = range(0, length - size + 1, max(length // _PROBES, 1))
        spans = [self.key_spans(Span(start, size), keys) for start in starts]
        widest = max((sum(span.size for span in found) for found in spans), default=keys)
        return None if 2 * widest >= keys else max(widest - size, 1)

    @property
    def is_relative(self) -> bool:
        """Whether the rules of positions compare nothing but distances."""
        return all(rule.is_relative for rule in self._rules_outside_spans)

    @property
    def is_band(self) -> bool:
        """Whether the rules of positions let a query see exactly the keys within its reach."""
        return all(rule.is_band for rule in self.position_rules)

    @property
    def lookahead(self) -> int | None:
        """The first position from which on no query sees a key after its own; None: not known."""
        known = [rule.lookahead for rule in self.position_rules if rule.lookahead is not None]
        return min(known, default=None)

    @property
    def is_exact(self) -> bool:
        """Whether `lookahead` also holds of positions that are no integers."""
        found = [rule for rule in self.position_rules if rule.lookahead == self.lookahead]
        return any(rule.is_exact for rule in found)

    @property
    def is_causal(self) -> bool:
        """Whether no query sees a key after its own position, but for those of its span."""
        return self.causal or any(rule.lookahead == 0 for rule in self._rules_outside_spans)

    @property
    def positions_are_indices(self) -> bool:
        """Whether positions are known from the indices."""
        return not self.has_explicit_positions and isinstance(self.offset, int)

    @property
    def has_explicit_positions(self) -> bool:
        return self.query_positions is not None or self.key_positions is not None

    @property
    def masks_tokens(self) -> bool:
        """Whether padding, segments or an explicit mask are given for the keys."""
        return bool(self.token_rules)

    @property
    def differs_by_query(self) -> bool:
        """Whether tokens are masked out for some queries of a sample and not for others."""
        return any(rule.differs_by_query for rule in self.token_rules)

    @property
    def is_per_token(self) -> bool:
        """Whether the rules of tokens hold only tensors (B, T) and (B, S)."""
        return all(rule.is_per_token for rule in self.token_rules)

    @property
    def num_heads(self) -> int:
        """1 where all heads see the same keys, otherwise N."""
        return max((rule.num_heads for rule in self.token_rules), default=1)

    @property
    def may_mask_out_all_keys(self) -> bool:
        """False only where it is certain that every query sees a key, if there is one."""
        if self.token_rules or not (self.is_band and self.positions_are_indices):
            return True
        before, after, offset = self.reach
        # A causal query before the first key sees none.
        return before is not None or (after is not None and offset + after < 0)

    def is_causal_from_start(self, length: int) -> bool:
        """Whether its rules of positions are a causal rule aligned at the start, for T queries."""
        before, after, offset = self.reach
        return (
            after == 0
            and self.is_band
            and self.positions_are_indices
            and offset == 0
            and (before is None or before >= length - 1)
        )

    def real_keys(self, columns: Columns) -> Tensor | None:
        """(B, s) booleans, False for padding; None where no key is."""
        return None if self.key_mask is None else slice_axis(self.key_mask, 1, columns)  # (B, s)

    # Positions ------------------------------------------------------------------------

    def positions_of_queries(self, rows: Span) -> Tensor:
        """(t) or (B, t)."""
        return _positions(self.query_positions, self.offset, rows, self.position_dtype)

    def positions_of_keys(self, columns: Columns) -> Tensor:
        """(s) or (B, s)."""
        return _positions(self.key_positions, 0, columns, self.position_dtype)

    @property
    def position_dtype(self) -> str:
        """int32, or the dtype of positions that are real numbers."""
        given = [x for x in (self.query_positions, self.key_positions) if x is not None]
        dtypes = {keras.backend.standardize_dtype(x.dtype) for x in given} & {"float32", "float64"}
        return max(dtypes, default="int32")

    def distances(self, rows: Span, columns: Columns) -> Tensor:
        """Key position less query position: (1, 1, t, s) or (B, 1, t, s)."""
        queries, keys = self.block_positions(rows, columns)
        return keys - queries  # (B|1, 1, t, s)

    def block_positions(self, rows: Span, columns: Columns) -> tuple[Tensor, Tensor]:
        """Positions of queries (B|1, 1, t, 1) and of keys (B|1, 1, 1, s)."""
        queries = _with_batch(self.positions_of_queries(rows))[:, None, :, None]  # (B|1, 1, t, 1)
        keys = _with_batch(self.positions_of_keys(columns))[:, None, None, :]  # (B|1, 1, 1, s)
        return queries, keys

    # Other masks made of it -----------------------------------------------------------

    def without_position_rules(self) -> "AttentionMask":
        """The same mask without `position_rules`."""
        if self.query_bidirectional is not None:
            return self
        return dataclasses.replace(self, causal=False, window=None, further_rules=())

    def without_padding(self) -> "AttentionMask":
        """The same mask, but padded keys are visible."""
        return dataclasses.replace(self, key_mask=None)

    def only_positions(self) -> "AttentionMask":
        """The same mask without `token_rules`."""
        mask = self
        if self.query_bidirectional is not None:
            mask = dataclasses.replace(
                self, query_bidirectional=None, key_bidirectional=None
            ).without_position_rules()
        return dataclasses.replace(
            mask, key_mask=None, query_segments=None, key_segments=None, mask=None
        )

    def with_explicit_positions(self, rows: Span) -> "AttentionMask":
        """The same mask, where an offset that is a tensor has become the positions of queries."""
        if isinstance(self.offset, int):
            return self
        positions = self.positions_of_queries(rows)
        return dataclasses.replace(self, query_positions=positions, offset=0)

    def map_queries(self, change: Callable[[Tensor, int], Tensor]) -> "AttentionMask":
        """The same mask with change(tensor, axis of queries) of each tensor that has queries.

        Without `query_mask`, which only concerns the finished output.
        """

        def kept(x: Tensor | None, axis: int) -> Tensor | None:
            return x if x is None or x.shape[axis] == 1 else change(x, axis)

        return dataclasses.replace(
            self,
            query_positions=kept(self.query_positions, -1),
            query_segments=kept(self.query_segments, 1),
            query_bidirectional=kept(self.query_bidirectional, 1),
            query_mask=None,
            mask=kept(self.mask, 2),
        )

    def map_tokens(
        self,
        of_queries: Callable[[Tensor], Tensor],
        of_keys: Callable[[Tensor], Tensor],
        offset: int,
    ) -> "AttentionMask":
        """The same mask with a function of its tensors (B, T) and one of its tensors (B, S).

        For a mask that `is_per_token` and whose positions are indices: those of the queries begin
        with `offset`. Without `query_mask`, which only concerns the finished output.
        """
        segments = self.query_segments
        return dataclasses.replace(
            self,
            offset=offset,
            query_mask=None,
            key_mask=None if self.key_mask is None else of_keys(self.key_mask),
            query_segments=None if segments is None else of_queries(segments),
            key_segments=None if segments is None else of_keys(self.key_segments),
        )

    # Function transforms --------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, for a function transform that must see them."""
        fields = {name: getattr(self, name) for name in _TENSOR_FIELDS}
        return {name: x for name, x in fields.items() if x is not None}

    def with_tensors(self, tensors: dict[str, Tensor]) -> "AttentionMask":
        return dataclasses.replace(self, **tensors)

    def without_tensors(self) -> "AttentionMask":
        return dataclasses.replace(self, **dict.fromkeys(_TENSOR_FIELDS))

    def axes(self, name: str) -> Axes:
        """What the axes of the tensor of a name count; one of size 1 broadcasts."""
        if name == "mask":
            return ("batch", "heads", None, None)
        # Positions may be for all samples.
        return ("batch", "tokens") if len(getattr(self, name).shape) == 2 else ("tokens",)


def _positions(given: Tensor | None, offset: Any, span: Columns, dtype: str) -> Tensor:
    if given is None:
        if isinstance(span, KeySpans):
            positions = indices_of(span) + offset  # (s)
        else:
            span = one_span(span)
            positions = ops.arange(span.size, dtype="int32") + (span.start + offset)  # (t) or (s)
        return positions if dtype == "int32" else ops.cast(positions, dtype)
    given = ops.cast(given, dtype)  # (T), (S), (B, T) or (B, S)
    return slice_axis(given, len(given.shape) - 1, span)  # (t), (s), (B, t) or (B, s)


@functools.lru_cache(maxsize=4096)
def _visible_keys(of: tuple[MaskRule, ...], first: int, last: int) -> Intervals:
    """The positions of keys that the queries `first` to `last` may see by all rules."""
    visible = [rule.visible_keys(first, last) for rule in of]
    return functools.reduce(intervals.intersection, visible, intervals.EVERYWHERE)


def _with_batch(positions: Tensor) -> Tensor:
    return positions if len(positions.shape) == 2 else positions[None]  # (B|1, t) or (B|1, s)
