"""Sums of gradients over blocks laid out one by one, without additions of whole tensors."""

import tensorflow as tf

from kerasattention.attend.bias import BlockBias, SumOfBiases, TensorBias
from kerasattention.attend.gradient import Named
from kerasattention.attend.mask import AttentionMask
from kerasattention.attend.tensors import (
    Columns,
    Span,
    Tensor,
    shape_of,
    slice_axis,
    spans_of,
    split_columns,
)


class SpanSum:
    """Sums gradients of spans of keys, whose places overlap, into (B, K, S, X).

    The part that no later span reaches is set aside, so that each addition takes only a span.
    """

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._done: list[Tensor] = []
        self._sum: Tensor | None = None
        self._start = like.shape[2]

    def latest(self) -> list[Tensor]:
        return [] if self._sum is None else [self._sum]

    def add(self, part: Tensor, columns: Span, still_to_come: int) -> None:
        """Adds a part; later ones end before or at `still_to_come`."""
        start, stop = columns.start, columns.stop
        if self._sum is None:
            # No query sees the keys behind the last span.
            last = max(stop, still_to_come)
            self._done.append(self._zeros(self._like.shape[2] - last))
            if last > stop:
                part = tf.concat([part, self._zeros(last - stop)], axis=2)  # (B, K, s, X)
            self._sum, self._start = part, start
        else:
            self._join(part, start, stop)
        self._set_aside(max(still_to_come, self._start))

    def total(self) -> Tensor:
        if self._sum is not None:
            self._done.append(self._sum)
        self._done.append(self._zeros(self._start))
        return tf.concat(
            [x for x in reversed(self._done) if x.shape[2] != 0], axis=2
        )  # (B, K, S, X)

    def _join(self, part: Tensor, start: int, stop: int) -> None:
        old_stop = self._start + self._sum.shape[2]
        if stop < self._start:
            part = tf.concat([part, self._zeros(self._start - stop)], axis=2)  # (B, K, s, X)
            stop = self._start
        low, high = min(start, self._start), max(stop, old_stop)
        middle = Span(max(start, self._start), min(stop, old_stop) - max(start, self._start))
        steps = []
        for bounds in (
            Span(low, middle.start - low),
            middle,
            Span(middle.stop, high - middle.stop),
        ):
            if bounds.size > 0:
                within = [
                    slice_axis(x, 2, Span(bounds.start - first, bounds.size))
                    for x, first in ((part, start), (self._sum, self._start))
                    if first <= bounds.start and bounds.stop <= first + x.shape[2]
                ]
                steps.append(within[0] if len(within) == 1 else within[0] + within[1])
        self._sum, self._start = tf.concat(steps, axis=2), low

    def _set_aside(self, bound: int) -> None:
        size = bound - self._start
        if size < self._sum.shape[2]:
            self._done.append(self._sum[:, :, size:])
            self._sum = self._sum[:, :, :size]

    def _zeros(self, size: int) -> Tensor:
        batch, kv_heads, _, width = shape_of(self._like)
        return tf.zeros((batch, kv_heads, size, width), self._like.dtype)  # (B, K, size, X)


class ColumnSum:
    """Sums gradients of the keys of blocks, of one span or several, into (B, K, S, X).

    Each span is added to the sum of its place, counted from the last span of a block: the spans
    of one place mostly lie in order.

    Args:
        like: (B, K, S, X).
        blocks: The keys of each block, in the order in which they will be added.
    """

    def __init__(self, like: Tensor, blocks: list[Columns]) -> None:
        spans = [spans_of(columns)[::-1] for columns in blocks]
        self._sums = [SpanSum(like) for _ in range(max(map(len, spans), default=1))]
        # The largest stop of the spans to come after each block, at each place.
        self._to_come: list[list[int]] = []
        for place in range(len(self._sums)):
            stops = [x[place].stop if len(x) > place else 0 for x in spans]
            self._to_come.append([max(stops[i + 1 :], default=0) for i in range(len(stops))])
        self._added = 0

    def latest(self) -> list[Tensor]:
        return [x for part in self._sums for x in part.latest()]

    def add(self, part: Tensor, columns: Columns) -> None:
        """Adds the part of the next block."""
        for place, (span, of_span) in enumerate(split_columns(part, 2, columns)[::-1]):
            self._sums[place].add(of_span, span, self._to_come[place][self._added])
        self._added += 1

    def total(self) -> Tensor:
        totals = [part.total() for part in self._sums]
        return totals[0] if len(totals) == 1 else tf.add_n(totals)  # (B, K, S, X)


class BiasSum:
    """Gradients of a bias over blocks of queries, given from the last block to the first.

    Those of a bias held as a tensor with an axis of queries are concatenated.
    """

    def __init__(self, bias: BlockBias | None) -> None:
        self._bias = bias
        self._parts: list[BiasSum] = []
        self._rows: list[Tensor] = []
        self._totals: Named = {}
        # A bias held as a tensor with an axis of queries, or None.
        self._tensor_bias: TensorBias | None = None
        if isinstance(bias, TensorBias) and bias.bias.shape[2] != 1:
            self._tensor_bias = bias
        if isinstance(bias, SumOfBiases):
            self._parts = [BiasSum(part) for part in bias.biases]

    def add(self, gradient: Tensor, mask: AttentionMask, rows: Span, columns: Columns) -> None:
        """Adds the gradient of a block's logits, (B, N, t, s)."""
        for part in self._parts:
            part.add(gradient, mask, rows, columns)
        if self._tensor_bias is not None:
            part = self._tensor_bias.rows_gradient(gradient, columns)  # (B|1, N|1, t, S|1)
            self._rows.append(tf.cast(part, self._tensor_bias.bias.dtype))
        elif self._bias is not None and not self._parts:
            found = self._bias.block_gradient(gradient, mask, rows, columns)
            for name, part in found.items():
                self._totals[name] = self._totals[name] + part if name in self._totals else part

    def skip(self, rows: Span) -> None:
        """Adds zeros for queries without keys."""
        for part in self._parts:
            part.skip(rows)
        if self._tensor_bias is not None:
            self._rows.append(tf.zeros_like(slice_axis(self._tensor_bias.bias, 2, rows)))

    def totals(self) -> Named:
        if self._parts:
            return {
                f"{index}/{name}": total
                for index, part in enumerate(self._parts)
                for name, total in part.totals().items()
            }
        if self._tensor_bias is not None:
            return {"attention_bias": tf.concat(self._rows[::-1], axis=2)}  # (B|1, N|1, T, S|1)
        return self._totals
