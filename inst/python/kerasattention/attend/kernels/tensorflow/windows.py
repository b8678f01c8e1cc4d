"""Folds strided blocks of a window into the batch, and back.

Blocks of a window are all alike, so they become samples of one block each: a graph of few, large
operations for any length.
"""

import dataclasses

import tensorflow as tf

from kerasattention.attend.inputs import AttentionInputs
from kerasattention.attend.tensors import Span, Tensor, one_span, shape_of, slice_axis
from kerasattention.attend.tiling import StridedBlocks


def fold(inputs: AttentionInputs, blocks: StridedBlocks) -> AttentionInputs:
    """Inputs of B * count samples with the queries and keys of one block each."""
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
