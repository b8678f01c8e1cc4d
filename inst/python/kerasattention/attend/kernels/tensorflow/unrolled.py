"""The blocked way on TensorFlow where lengths are known: blocks laid out one by one.

Blocks of a window are all alike, so they are folded into the batch and computed some
million logits at once: a graph of few, large operations for any length.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf
from keras import ops

from kerasattention.attend.bias import BlockBias, SumOfBiases, TensorBias
from kerasattention.attend.gradient import Named, with_gradient
from kerasattention.attend.inputs import AttentionInputs
from kerasattention.attend.kernels.tensorflow.block import (
    Block,
    BlockGradients,
    block_gradients,
    block_output,
)
from kerasattention.attend.kernels.tensorflow.masking import is_compiled_by_xla
from kerasattention.attend.mask import AttentionMask
from kerasattention.attend.tensors import Span, Tensor, slice_axis

# Logits of all heads and samples that one run of blocks of a window may have.
STRIDED_LOGITS = 2**21
# Beyond so many queries two walks begin with copies that are too large for what they save.
MAX_QUERIES_OF_HEAD_GROUPS = 8192


class StridedBlocks(NamedTuple):
    """Queries and their keys, `count` times, each `rows.size` further on."""

    rows: Span
    columns: Span
    count: int = 1

    @property
    def all_rows(self) -> Span:
        return Span(self.rows.start, self.rows.size * self.count)

    @property
    def all_columns(self) -> Span:
        return Span(self.columns.start, self.columns.size + self.rows.size * (self.count - 1))


def unrolled_attention(inputs: AttentionInputs, steps: list[StridedBlocks]) -> Tensor:
    """(B, K, G, T, Hv) of a scaled problem."""
    head_groups = plan_head_groups(inputs)

    def forward(named: Named) -> tuple[Tensor, Tensor]:
        given = inputs.with_tensors(named)
        outputs = [_forward(_of_head_group(given, heads), steps) for heads in head_groups]
        # Heads before rows: what is joined is given up piece by piece.
        rows = [_join_heads(parts) for parts in zip(*outputs, strict=True)]
        return tf.concat(rows, axis=3), tf.zeros(())

    def backward(named: Named, output: Tensor, _: Tensor, upstream: Tensor) -> Named:
        given = inputs.with_tensors(named)
        upstream = tf.cast(upstream, inputs.accumulator)
        found = []
        for heads in head_groups:
            part = (slice_axis(x, 1, heads) for x in (output, upstream))
            found.append(_backward(_of_head_group(given, heads), steps, *part))
        if len(found) == 1:
            return found[0]
        axes = {"sink": 0}
        return {
            name: tf.concat([x[name] for x in found], axis=axes.get(name, 1)) for name in found[0]
        }

    return with_gradient(forward, backward, inputs)


# Which heads ------------------------------------------------------------------------------


def plan_head_groups(inputs: AttentionInputs) -> list[Span]:
    """Key heads that walk over the pieces by themselves.

    Two walks at once: while one's small operations leave a core idle, the other's product
    has it. Each holds half of the logits that one walk of all heads would.
    """
    kv_heads, mask = inputs.kv_heads, inputs.mask.mask
    by_head = inputs.bias is not None or (mask is not None and mask.shape[1] != 1)
    # Dropout counts heads from the first; without a graph nothing runs at once.
    one_walk = tf.executing_eagerly() or is_compiled_by_xla()
    one_walk = one_walk or inputs.query.shape[3] > MAX_QUERIES_OF_HEAD_GROUPS
    if kv_heads == 1 or by_head or inputs.rate > 0.0 or one_walk:
        return [Span(0, kv_heads)]
    half = kv_heads // 2
    return [Span(0, half), Span(half, kv_heads - half)]


def _of_head_group(inputs: AttentionInputs, heads: Span) -> AttentionInputs:
    if heads.size == inputs.kv_heads:
        return inputs
    return dataclasses.replace(
        inputs,
        query=slice_axis(inputs.query, 1, heads),
        key=slice_axis(inputs.key, 1, heads),
        value=slice_axis(inputs.value, 1, heads),
        sink=None if inputs.sink is None else inputs.sink[heads.start : heads.stop],
    )


def _join_heads(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else tf.concat(parts, axis=1)


# Which pieces -----------------------------------------------------------------------------


def plan_strided_blocks(inputs: AttentionInputs, size: int) -> list[StridedBlocks]:
    """Pieces that cover every query once; a piece may have no keys."""
    length, keys = inputs.query.shape[3], inputs.key.shape[2]
    steps = []
    start = 0
    while start < length:
        found = _strided(inputs, start, size)
        if found is None:
            rows = Span(start, min(size, length - start))
            found = StridedBlocks(rows, inputs.mask.key_range(rows, keys))
        steps.append(found)
        start = found.all_rows.stop
    return steps


def _strided(inputs: AttentionInputs, start: int, size: int) -> StridedBlocks | None:
    """As many blocks from `start` on as one run can take, all with keys on both sides."""
    mask = inputs.mask
    if not may_fold(inputs):
        return None
    length, keys = inputs.query.shape[3], inputs.key.shape[2]
    before = -(-(mask.window - 1) // size) * size
    behind = 0 if mask.causal else before
    first = start + mask.offset - before
    width = before + size + behind
    room = min((length - start) // size, (keys - first - width) // size + 1)
    batch, kv_heads, groups = inputs.query.shape[:3]
    logits = (batch or 1) * kv_heads * groups * size * width
    count = min(room, max(1, STRIDED_LOGITS // logits))
    if first < 0 or count < 2:
        return None
    return StridedBlocks(Span(start, size), Span(first, width), count)


def may_fold(inputs: AttentionInputs) -> bool:
    """Whether blocks of a window differ in nothing that a batch cannot hold."""
    mask = inputs.mask
    return (
        mask.window is not None
        and mask.positions_are_indices
        and mask.mask is None
        and inputs.bias is None
        and inputs.rate == 0.0
    )


# Forward and backward ---------------------------------------------------------------------


def _forward(inputs: AttentionInputs, steps: list[StridedBlocks]) -> list[Tensor]:
    """Each piece's rows (B, K, G, t, Hv)."""
    outputs: list[Tensor] = []
    for blocks in steps:
        # One block after the other: a graph would start them all, and hold them all.
        with tf.control_dependencies(outputs[-1:]):
            outputs.append(_blocks_output(inputs, blocks))
    return outputs


def _blocks_output(inputs: AttentionInputs, blocks: StridedBlocks) -> Tensor:
    if blocks.columns.size == 0:
        rows = tf.zeros_like(slice_axis(inputs.query, 3, blocks.rows)[..., :1])
        return tf.repeat(tf.cast(rows, inputs.accumulator), inputs.value.shape[-1], axis=-1)
    output = block_output(*_block(inputs, blocks))
    return output if blocks.count == 1 else _unfold_rows(output, blocks)


def _block(inputs: AttentionInputs, blocks: StridedBlocks) -> tuple[AttentionInputs, Block]:
    """The piece as one block of a problem: this one, or one with more samples."""
    if blocks.count == 1:
        return inputs, Block(blocks.rows, blocks.columns)
    folded = _fold(inputs, blocks)
    return folded, Block(blocks.rows._replace(start=0), blocks.columns._replace(start=0))


def _backward(
    inputs: AttentionInputs, steps: list[StridedBlocks], output: Tensor, upstream: Tensor
) -> Named:
    queries: list[Tensor] = []
    keys, values = SpanSum(inputs.key), SpanSum(inputs.value)
    bias = BiasSum(inputs.bias)
    sinks: list[Tensor] = []
    # From the last to the first: the keys that are left behind have their whole sum.
    for index, blocks in reversed(list(enumerate(steps))):
        part = [slice_axis(x, 3, blocks.all_rows) for x in (output, upstream)]
        if blocks.columns.size == 0:
            queries.append(tf.zeros_like(slice_axis(inputs.query, 3, blocks.all_rows)))
            bias.skip(blocks.rows)
            continue
        with tf.control_dependencies([*queries[-1:], *keys.latest(), *values.latest()]):
            given, block = _block(inputs, blocks)
            if blocks.count > 1:
                part = [_fold_rows(x, blocks) for x in part]
            found = _unfolded(block_gradients(given, block, *part), blocks)
            queries.append(found.query)
            still_to_come = max((p.all_columns.stop for p in steps[:index]), default=0)
            keys.add(found.key, blocks.all_columns, still_to_come)
            values.add(found.value, blocks.all_columns, still_to_come)
            sinks += [] if found.sink is None else [found.sink]
            if found.logits is not None:
                bias.add(found.logits, inputs.mask, blocks.rows, blocks.columns)
    named = {
        "query": tf.concat(queries[::-1], axis=3),
        "key": keys.total(),
        "value": values.total(),
        **{f"bias/{name}": total for name, total in bias.totals().items()},
    }
    return named | ({"sink": _sum(sinks, inputs.sink)} if inputs.sink is not None else {})


def _sum(parts: list[Tensor], like: Tensor) -> Tensor:
    return tf.add_n(parts) if parts else tf.zeros_like(like)


def _unfolded(found: BlockGradients, blocks: StridedBlocks) -> BlockGradients:
    if blocks.count == 1:
        return found
    return found._replace(
        query=_unfold_rows(found.query, blocks),
        key=_unfold_columns(found.key, blocks),
        value=_unfold_columns(found.value, blocks),
    )


class SpanSum:
    """Sums gradients of spans of keys, whose places overlap, into (B, K, S, X).

    What no later span reaches is set aside, so that each addition takes a span alone.
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
            # Nobody saw the keys behind the last span.
            self._done.append(self._zeros(self._like.shape[2] - stop))
            self._sum, self._start = part, start
        else:
            self._join(part, start, stop)
        self._set_aside(max(still_to_come, self._start))

    def total(self) -> Tensor:
        if self._sum is not None:
            self._done.append(self._sum)
        self._done.append(self._zeros(self._start))
        return tf.concat([x for x in reversed(self._done) if x.shape[2] != 0], axis=2)

    def _join(self, part: Tensor, start: int, stop: int) -> None:
        old_stop = self._start + self._sum.shape[2]
        if stop < self._start:
            part = tf.concat([part, self._zeros(self._start - stop)], axis=2)
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
        batch, kv_heads, _, width = ops.shape(self._like)
        return tf.zeros((batch, kv_heads, size, width), self._like.dtype)


class BiasSum:
    """Gradients of a bias over blocks of queries, given from the last block to the first.

    Those of a bias held as a tensor are laid end to end where it has queries of its own.
    """

    def __init__(self, bias: BlockBias | None) -> None:
        self._bias = bias
        self._parts: list[BiasSum] = []
        self._rows: list[Tensor] = []
        self._totals: Named = {}
        if isinstance(bias, SumOfBiases):
            self._parts = [BiasSum(part) for part in bias.biases]

    def add(self, gradient: Tensor, mask: AttentionMask, rows: Span, columns: Span) -> None:
        """Adds the gradient of a block's logits, (B, N, t, s)."""
        for part in self._parts:
            part.add(gradient, mask, rows, columns)
        if self._has_rows():
            part = self._bias.rows_gradient(gradient, columns)
            self._rows.append(tf.cast(part, self._bias.bias.dtype))
        elif not self._parts:
            found = self._bias.block_gradient(gradient, mask, rows, columns)
            for name, part in found.items():
                self._totals[name] = self._totals[name] + part if name in self._totals else part

    def skip(self, rows: Span) -> None:
        """Takes note of queries without keys."""
        for part in self._parts:
            part.skip(rows)
        if self._has_rows():
            self._rows.append(tf.zeros_like(slice_axis(self._bias.bias, 2, rows)))

    def totals(self) -> Named:
        if self._parts:
            return {
                f"{index}/{name}": total
                for index, part in enumerate(self._parts)
                for name, total in part.totals().items()
            }
        if self._has_rows():
            return {"attention_bias": tf.concat(self._rows[::-1], axis=2)}
        return self._totals

    def _has_rows(self) -> bool:
        return isinstance(self._bias, TensorBias) and self._bias.bias.shape[2] != 1


# Folding blocks of a window into the batch --------------------------------------------------


def _fold(inputs: AttentionInputs, blocks: StridedBlocks) -> AttentionInputs:
    """A problem of B * count samples with the queries and keys of one block each."""
    mask = inputs.mask
    columns = blocks.all_columns

    def of_keys(x: Tensor | None) -> Tensor | None:
        return (
            None if x is None else _fold_tokens(slice_axis(x, 1, columns), blocks.columns, blocks)
        )

    def of_queries(x: Tensor | None) -> Tensor | None:
        if x is None:
            return None
        return _fold_tokens(slice_axis(x, 1, blocks.all_rows), blocks.rows, blocks)

    return dataclasses.replace(
        inputs,
        query=_fold_rows(slice_axis(inputs.query, 3, blocks.all_rows), blocks),
        key=_fold_columns(slice_axis(inputs.key, 2, columns), blocks),
        value=_fold_columns(slice_axis(inputs.value, 2, columns), blocks),
        mask=dataclasses.replace(
            mask,
            offset=blocks.rows.start + mask.offset - blocks.columns.start,
            query_mask=None,
            key_mask=of_keys(mask.key_mask),
            query_segments=of_queries(mask.query_segments),
            key_segments=of_keys(mask.key_segments),
        ),
    )


def _fold_rows(x: Tensor, blocks: StridedBlocks) -> Tensor:
    """(B, K, G, count * t, X) to (B * count, K, G, t, X)."""
    batch, kv_heads, groups, _, size = ops.shape(x)
    count, length = blocks.count, blocks.rows.size
    x = tf.reshape(x, (batch, kv_heads, groups, count, length, size))
    x = tf.transpose(x, (0, 3, 1, 2, 4, 5))
    return tf.reshape(x, (batch * count, kv_heads, groups, length, size))


def _unfold_rows(x: Tensor, blocks: StridedBlocks) -> Tensor:
    """The inverse of `_fold_rows`."""
    batch, kv_heads, groups, length, size = ops.shape(x)
    count = blocks.count
    x = tf.reshape(x, (batch // count, count, kv_heads, groups, length, size))
    x = tf.transpose(x, (0, 2, 3, 1, 4, 5))
    return tf.reshape(x, (batch // count, kv_heads, groups, count * length, size))


def _fold_columns(x: Tensor, blocks: StridedBlocks) -> Tensor:
    """(B, K, all keys, X) to (B * count, K, s, X): each block's keys, which overlap."""
    batch, kv_heads, _, size = ops.shape(x)
    tiles = tf.reshape(x, (batch, kv_heads, -1, blocks.rows.size, size))
    tiles = tf.transpose(tiles, (0, 2, 1, 3, 4))  # (B, tiles, K, t, X)
    shifts = range(blocks.columns.size // blocks.rows.size)
    x = tf.concat([tiles[:, shift : shift + blocks.count] for shift in shifts], axis=3)
    return tf.reshape(x, (batch * blocks.count, kv_heads, blocks.columns.size, size))


def _unfold_columns(x: Tensor, blocks: StridedBlocks) -> Tensor:
    """Sums (B * count, K, s, X) where keys overlap, to (B, K, all keys, X)."""
    batch, kv_heads, width, size = ops.shape(x)
    length, count = blocks.rows.size, blocks.count
    batch = batch // count
    x = tf.reshape(x, (batch, count, kv_heads, width, size))
    shifts = width // length
    tiles = []
    for shift in range(shifts):
        tile = x[:, :, :, shift * length : (shift + 1) * length]
        around = (shift, shifts - 1 - shift)
        tiles.append(tf.pad(tile, [(0, 0), around, (0, 0), (0, 0), (0, 0)]))
    x = tf.transpose(tf.add_n(tiles), (0, 2, 1, 3, 4))
    return tf.reshape(x, (batch, kv_heads, (count + shifts - 1) * length, size))


def _fold_tokens(x: Tensor, span: Span, blocks: StridedBlocks) -> Tensor:
    """(B, all tokens) to (B * count, t or s)."""
    batch = ops.shape(x)[0]
    tiles = tf.reshape(x, (batch, -1, blocks.rows.size))
    shifts = range(span.size // blocks.rows.size)
    x = tf.concat([tiles[:, shift : shift + blocks.count] for shift in shifts], axis=2)
    return tf.reshape(x, (batch * blocks.count, span.size))
