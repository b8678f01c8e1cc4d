"""Folds strided blocks of a window into the batch, and back.

Blocks of a window are all alike, so they become samples of one block each: a graph of few, large
operations for any length. Beside the window they may have keys that are the same for all.
"""

import dataclasses

import tensorflow as tf

from kerasattention.attend.inputs import AttentionInputs
from kerasattention.attend.tensors import (
    KeySpans,
    Span,
    Tensor,
    one_span,
    shape_of,
    slice_axis,
    spans_of,
)
from kerasattention.attend.tiling import StridedBlocks, copied_numbers, fixed_spans


def fold(inputs: AttentionInputs, blocks: StridedBlocks) -> AttentionInputs:
    """Inputs of B * count samples with the queries and keys of one block each."""
    if not inputs.mask.is_band:
        return _fold_spans(inputs, blocks)
    columns = blocks.all_columns
    of_first = one_span(blocks.columns)

    def of_keys(x: Tensor) -> Tensor:
        return fold_tokens(slice_axis(x, 1, columns), of_first, blocks)

    def of_queries(x: Tensor) -> Tensor:
        return fold_tokens(slice_axis(x, 1, blocks.all_rows), blocks.rows, blocks)

    offset = blocks.rows.start + inputs.mask.reach.offset - of_first.start
    return dataclasses.replace(
        inputs,
        query=fold_rows(
            slice_axis(inputs.query, 3, blocks.all_rows), blocks
        ),  # (B * count, K, G, t, H)
        key=fold_columns(slice_axis(inputs.key, 2, columns), blocks),  # (B * count, K, s, H)
        value=fold_columns(slice_axis(inputs.value, 2, columns), blocks),  # (B * count, K, s, Hv)
        mask=inputs.mask.map_tokens(of_queries, of_keys, offset),
    )


def _fold_spans(inputs: AttentionInputs, blocks: StridedBlocks) -> AttentionInputs:
    """The same, where rules of positions give all blocks the mask of the first."""

    def of_keys(x: Tensor) -> Tensor:
        parts = [_fold_span(x[:, None, :, None], part) for part in blocks.spans]
        return tf.concat(parts, axis=2)[:, 0, :, 0]  # (B * count, s)

    def of_queries(x: Tensor) -> Tensor:
        return fold_tokens(slice_axis(x, 1, blocks.all_rows), blocks.rows, blocks)

    def folded(x: Tensor) -> Tensor:
        parts = [_fold_span(x, part) for part in blocks.spans]
        return tf.concat(parts, axis=2)  # (B * count, K, s, X)

    visible = inputs.mask.only_positions().block_mask(blocks.rows, blocks.columns)  # (1, 1, t, s)
    mask = inputs.mask.without_position_rules().map_tokens(of_queries, of_keys, 0)
    return dataclasses.replace(
        inputs,
        query=fold_rows(
            slice_axis(inputs.query, 3, blocks.all_rows), blocks
        ),  # (B * count, K, G, t, H)
        key=folded(inputs.key),
        value=folded(inputs.value),
        mask=dataclasses.replace(mask, mask=visible),
    )


def _fold_span(x: Tensor, part: StridedBlocks) -> Tensor:
    """(B, K, S, X) to (B * count, K, s, X), of blocks with one span of keys."""
    x = slice_axis(x, 2, part.all_columns)
    if not part.fixed:
        return fold_columns(x, part)
    batch, kv_heads, keys, size = shape_of(x)
    x = tf.repeat(x[:, None], part.count, axis=1)  # (B, count, K, s, X)
    return tf.reshape(x, (batch * part.count, kv_heads, keys, size))


def unfold_spans(x: Tensor, blocks: StridedBlocks) -> Tensor:
    """Sums (B * count, K, s, X) where keys overlap: the spans of `blocks.all_columns`."""
    if isinstance(blocks.columns, Span) and not blocks.fixed:
        return unfold_columns(x, blocks)
    parts = tf.split(x, [span.size for span in spans_of(blocks.columns)], axis=2)
    found = []
    for part, of_span in zip(blocks.spans, parts, strict=True):
        if part.fixed:
            batch, kv_heads, keys, size = shape_of(of_span)
            of_blocks = tf.reshape(
                of_span, (batch // part.count, part.count, kv_heads, keys, size)
            )  # (B, count, K, s, X)
            found.append(tf.reduce_sum(of_blocks, axis=1))  # (B, K, s, X)
        else:
            found.append(unfold_columns(of_span, part))  # (B, K, all keys, X)
    return found[0] if len(found) == 1 else tf.concat(found, axis=2)


def fold_rows(x: Tensor, blocks: StridedBlocks) -> Tensor:
    """(B, K, G, count * t, X) to (B * count, K, G, t, X)."""
    batch, kv_heads, groups, _, size = shape_of(x)
    count, length = blocks.count, blocks.rows.size
    x = tf.reshape(x, (batch, kv_heads, groups, count, length, size))  # (B, K, G, count, t, X)
    x = tf.transpose(x, (0, 3, 1, 2, 4, 5))  # (B, count, K, G, t, X)
    return tf.reshape(x, (batch * count, kv_heads, groups, length, size))  # (B * count, K, G, t, X)


def unfold_rows(x: Tensor, blocks: StridedBlocks) -> Tensor:
    """(B * count, K, G, t, X) to (B, K, G, count * t, X), the inverse of `fold_rows`."""
    batch, kv_heads, groups, length, size = shape_of(x)
    count = blocks.count
    x = tf.reshape(
        x, (batch // count, count, kv_heads, groups, length, size)
    )  # (B, count, K, G, t, X)
    x = tf.transpose(x, (0, 2, 3, 1, 4, 5))  # (B, K, G, count, t, X)
    return tf.reshape(
        x, (batch // count, kv_heads, groups, count * length, size)
    )  # (B, K, G, count * t, X)


def fold_columns(x: Tensor, blocks: StridedBlocks) -> Tensor:
    """(B, K, all keys, X) to (B * count, K, s, X): each block's keys, which overlap."""
    batch, kv_heads, keys, size = shape_of(x)
    length = blocks.rows.size
    tiles = tf.reshape(x, (batch, kv_heads, keys // length, length, size))
    tiles = tf.transpose(tiles, (0, 2, 1, 3, 4))  # (B, tiles, K, t, X)
    shifts = range(blocks.columns.size // blocks.rows.size)
    x = tf.concat(
        [tiles[:, shift : shift + blocks.count] for shift in shifts], axis=3
    )  # (B, count, K, s, X)
    return tf.reshape(
        x, (batch * blocks.count, kv_heads, blocks.columns.size, size)
    )  # (B * count, K, s, X)


def unfold_columns(x: Tensor, blocks: StridedBlocks) -> Tensor:
    """Sums (B * count, K, s, X) where keys overlap, to (B, K, all keys, X)."""
    batch, kv_heads, width, size = shape_of(x)
    length, count = blocks.rows.size, blocks.count
    batch = batch // count
    x = tf.reshape(x, (batch, count, kv_heads, width, size))  # (B, count, K, s, X)
    shifts = width // length
    tiles = []
    for shift in range(shifts):
        tile = x[:, :, :, shift * length : (shift + 1) * length]  # (B, count, K, t, X)
        around = (shift, shifts - 1 - shift)
        tiles.append(tf.pad(tile, [(0, 0), around, (0, 0), (0, 0), (0, 0)]))  # (B, tiles, K, t, X)
    x = tf.transpose(tf.add_n(tiles), (0, 2, 1, 3, 4))  # (B, K, tiles, t, X)
    return tf.reshape(
        x, (batch, kv_heads, (count + shifts - 1) * length, size)
    )  # (B, K, all keys, X)


def fold_tokens(x: Tensor, span: Span, blocks: StridedBlocks) -> Tensor:
    """(B, all tokens) to (B * count, t or s)."""
    batch, tokens = shape_of(x)
    tiles = tf.reshape(x, (batch, tokens // blocks.rows.size, blocks.rows.size))
    shifts = range(span.size // blocks.rows.size)
    x = tf.concat(
        [tiles[:, shift : shift + blocks.count] for shift in shifts], axis=2
    )  # (B, count, t or s)
    return tf.reshape(x, (batch * blocks.count, span.size))  # (B * count, t or s)


# Which blocks are alike --------------------------------------------------------------------


def alike_blocks(
    inputs: AttentionInputs, start: int, size: int, strided_logits: int
) -> StridedBlocks | None:
    """As many blocks from `start` on as rules of positions give the same mask."""
    mask = inputs.mask
    length, keys = inputs.query.shape[3], inputs.key.shape[2]
    if mask.is_band or not differs_in_tokens_only(inputs) or start + 2 * size > length:
        return None
    spans, others = (mask.key_spans(Span(start + at, size), keys) for at in (0, size))
    if not spans or len(spans) != len(others):
        return None
    moves = [b.start - a.start == size for a, b in zip(spans, others, strict=True)]
    run = _widened(inputs, Span(start, size), moves)
    if run is None or not any(moves):
        return None
    batch, kv_heads, groups = inputs.query.shape[:3]
    logits = (batch or 1) * kv_heads * groups * size * run.columns.size
    numbers = copied_numbers(inputs)
    while run.all_rows.stop + size <= length and (run.count + 1) * logits <= strided_logits:
        block = _widened(inputs, Span(run.all_rows.stop, size), moves)
        fixed = None if block is None else fixed_spans(mask, run, block, numbers)
        if fixed != tuple(number for number, moving in enumerate(moves) if not moving):
            break
        run = run._replace(count=run.count + 1, fixed=fixed)
    return run if run.count > 1 else None


def _widened(inputs: AttentionInputs, rows: Span, moves: list[bool]) -> StridedBlocks | None:
    """A block whose spans that move with the queries have a multiple of its queries as keys."""
    spans = inputs.mask.key_spans(rows, inputs.key.shape[2])
    if len(spans) != len(moves):
        return None
    found, last = [], 0
    for span, moving in zip(spans, moves, strict=True):
        more = -span.size % rows.size if moving else 0
        if span.start - more < last:
            return None
        found.append(Span(span.start - more, span.size + more))
        last = span.stop
    return StridedBlocks(rows, KeySpans(tuple(found)) if len(found) > 1 else found[0])


def differs_in_tokens_only(inputs: AttentionInputs) -> bool:
    """Whether blocks with equal masks by position differ in nothing that a batch cannot hold."""
    mask = inputs.mask
    return (
        mask.positions_are_indices
        and mask.is_per_token
        and inputs.bias is None
        and inputs.rate == 0.0
    )
