"""The blocks of queries of TensorFlow's loop, each with the keys that it may see."""

import dataclasses
import math
from typing import Any

import numpy as np
import tensorflow as tf

from kerasattention.attend.bidirectional import visible_range
from kerasattention.attend.block import Block
from kerasattention.attend.inputs import AttentionInputs
from kerasattention.attend.kernels.tensorflow.head_groups import can_split_heads_and_bias
from kerasattention.attend.rules import Reach
from kerasattention.attend.tensors import (
    Columns,
    KeySpans,
    Span,
    Tensor,
    is_compiled_by_xla,
    is_static,
    shape_of,
)

# Queries of a block: the steps of a loop cost more to start than blocks laid out one by one.
BLOCK_SIZE = 256
# Queries of a block of a mask that leaves few keys, as a share of these.
WINDOW_SHARE = 2
# Logits of a block, over all heads and samples: 32 MB, or half of that beside a bias. A backward
# pass holds four such tensors, and a few of a bias.
MOST_LOGITS = 2**23
# Where heads are computed one after the other: 16 MB.
MOST_LOGITS_OF_HEAD = 2**22
# Queries of the smallest block that is made for this.
LEAST_ROWS = 64
# Different numbers of keys that blocks may have. oneDNN compiles each of the products anew for each
# number, and keeps about 0.2 MB of code: a first gradient of T = 16,384 with 128 of them takes 2 s
# longer than with 64, and 0.07 GB more. Each half makes later steps 1 or 2% longer.
MOST_SIZES = 32


def choose_block_size(inputs: AttentionInputs) -> int:
    """Fewer queries where each sees few keys, so that fewer keys are computed in vain."""
    window = _window(inputs)
    if window is None:
        return _size_by_memory(inputs)
    return min(max(window // WINDOW_SHARE // 32 * 32, 32), BLOCK_SIZE)


def _window(inputs: AttentionInputs) -> int | None:
    """The number of keys that a query of a mask which is no band sees, if they are few."""
    mask = inputs.mask
    if mask.is_band:
        return None
    return mask.usual_window(inputs.query.shape[3], inputs.key.shape[2])


def _size_by_memory(inputs: AttentionInputs) -> int:
    """Fewer queries where all keys of the heads, as far as they are known, are many."""
    if inputs.mask.reach.width is not None:
        return BLOCK_SIZE
    heads, most = inputs.kv_heads, MOST_LOGITS if inputs.bias is None else MOST_LOGITS // 2
    if is_head_by_head(inputs):
        heads, most = 1, MOST_LOGITS_OF_HEAD
    size = BLOCK_SIZE
    while size > LEAST_ROWS and size * _logits_of_query(inputs, heads) > most:
        size //= 2
    return size


def is_head_by_head(inputs: AttentionInputs) -> bool:
    """Whether key heads are computed one after the other: where the logits of all are many.

    A block then holds the logits of one head only, and its part of keys and values. Where
    several query heads share a key head, these parts are small as they are.
    """
    sees_few = inputs.mask.reach.width is not None or _window(inputs) is not None
    is_large = BLOCK_SIZE * _logits_of_query(inputs, inputs.kv_heads) > MOST_LOGITS
    may_split = can_split_heads_and_bias(inputs) and not is_compiled_by_xla()
    return is_large and may_split and not sees_few


def _logits_of_query(inputs: AttentionInputs, kv_heads: int) -> int:
    """Those of some key heads and all samples, as far as they are known."""
    batch, _, groups = inputs.query.shape[:3]
    sizes = (batch, kv_heads, groups, inputs.key.shape[2])
    return math.prod(size for size in sizes if is_static(size))


@dataclasses.dataclass(frozen=True)
class BlockLoop:
    """The blocks of the loop.

    Attributes:
        size: Queries of a block.
        count: How many blocks; may be a tensor.
        compiled: Whether XLA compiles it: then no size may depend on the block.
        head_by_head: Whether key heads are computed one after the other.
    """

    size: int
    count: Tensor | int
    compiled: bool
    head_by_head: bool = False

    def block(self, inputs: AttentionInputs, index: Tensor) -> Block:
        """The block of an index that is a tensor."""
        reach = inputs.mask.reach
        rows = Span(index * self.size, self.size)
        keys = shape_of(inputs.key)[2]
        if inputs.mask.has_explicit_positions:
            return Block(rows, Span(0, keys))
        if self._has_lists(inputs):
            return Block(rows, self._listed_columns(inputs, index))
        if inputs.mask.query_bidirectional is not None and not self.compiled:
            return Block(rows, _columns_with_spans(inputs, rows, keys))
        if self.compiled:
            return Block(rows, self._columns_of_one_size(reach, rows, keys))
        return Block(rows, _visible_columns(reach, rows, keys))

    def _has_lists(self, inputs: AttentionInputs) -> bool:
        """Whether the spans of keys of each block are known before the graph runs."""
        mask, keys = inputs.mask, inputs.key.shape[2]
        known = mask.positions_are_indices and is_static(self.count, keys)
        return known and not mask.is_band and not self.compiled

    def _listed_columns(self, inputs: AttentionInputs, index: Tensor) -> Columns:
        """The spans of keys of a block, looked up; those that it has less than others are empty."""
        blocks = [Span(start * self.size, self.size) for start in range(int(self.count))]
        spans = [inputs.mask.key_spans(rows, inputs.key.shape[2]) for rows in blocks]
        spans = [of_block or (Span(0, 1),) for of_block in spans]  # at least one key, for a softmax
        largest = max(sum(span.size for span in of_block) for of_block in spans)
        spans = [_widened(of_block, largest, inputs.key.shape[2]) for of_block in spans]
        most = max(map(len, spans))
        table = np.array(
            [[Span(0, 0)] * (most - len(of_block)) + list(of_block) for of_block in spans]
        )  # (count, spans, 2)
        of_block = tf.gather(tf.constant(table, tf.int32), index)  # (spans, 2)
        found = tuple(Span(of_block[i, 0], of_block[i, 1]) for i in range(most))
        return found[0] if most == 1 else KeySpans(found)

    def _columns_of_one_size(self, reach: Reach, rows: Span, keys: Tensor | int) -> Span:
        if reach.width is None:
            return Span(0, keys)
        width = reach.width - 1 + self.size
        width = min(width, keys) if is_static(keys) else tf.minimum(width, keys)
        first = reach.first_key(rows.start)
        return Span(tf.clip_by_value(first, 0, keys - width), width)


def _visible_columns(reach: Reach, rows: Span, keys: Tensor | int) -> Span:
    """The keys that these queries may attend: at least one, for a softmax."""
    first, last = tf.zeros((), tf.int32), tf.convert_to_tensor(keys, tf.int32)
    if reach.before is not None:
        first = reach.first_key(rows.start)
    if reach.after is not None:
        last = reach.stop_key(rows.stop - 1)
    first = tf.clip_by_value(first, 0, keys - 1)
    size = tf.clip_by_value(last, first + 1, keys) - first
    if reach.before is None:
        size = tf.minimum(_rounded_up(size, keys), keys)
    return Span(first, size)


def _columns_with_spans(inputs: AttentionInputs, rows: Span, keys: Tensor | int) -> Span:
    """At least one key, for a softmax."""
    first, stop = visible_range(inputs.mask, rows, keys)
    size = tf.minimum(_rounded_up(tf.maximum(stop - first, 1), keys), keys)
    return Span(tf.minimum(first, keys - size), size)


def _widened(spans: tuple[Span, ...], most: int, keys: int) -> tuple[Span, ...]:
    """The spans of a block, the last one longer: together as `_rounded_up()`, as far as it goes."""
    size = sum(span.size for span in spans)
    more = min(_rounded_up(size, most) - size, keys - spans[-1].stop)
    return (*spans[:-1], spans[-1]._replace(size=spans[-1].size + more))


def _rounded_up(size: Any, most: Any) -> Any:
    """A number of keys of a block, rounded up to one of MOST_SIZES where the largest has `most`."""
    step = -(-most // MOST_SIZES)
    return -(-size // step) * step
