"""Which queries see a non-finite number, or hold one and see any key."""

import functools
from typing import cast

import keras
import numpy as np
from keras import ops

from kerasattention.attend.bias import BlockBias, SumOfBiases, TensorBias
from kerasattention.attend.inputs import AttentionInputs
from kerasattention.attend.tensors import Span, Tensor, group_heads, is_static, shape_of

# Queries of a block when the queries that see non-finite numbers are looked for.
BLOCK = 128
# Up to this many logits no loop over blocks: XLA takes long to compile one.
WHOLE = 512 * 512


def poisoned_rows(inputs: AttentionInputs, rows: Span, of_values: bool) -> Tensor:
    """(B, K, G, t): queries that see a non-finite key or value, or hold one and see any key."""
    query, key = (
        _has_non_finite(inputs.query),
        _has_non_finite(inputs.key),
    )  # (B, K, G, T), (B, K, S)
    if of_values:
        key = ops.logical_or(key, _has_non_finite(inputs.value))  # (B, K, S)
    if sees_from_some_key_on(inputs):
        return _poisoned_by_first_key(inputs, query, key, rows)
    if not is_static(*rows) and keras.backend.backend() != "tensorflow":
        return _poisoned_block(inputs, query, key, rows)
    keys = inputs.key.shape[2]
    if is_static(*rows, keys) and (rows.size <= BLOCK or rows.size * keys <= WHOLE):
        return _poisoned_block(inputs, query, key, rows)
    return _poisoned_in_blocks(inputs, query, key, rows)


def sees_from_some_key_on(inputs: AttentionInputs) -> bool:
    """Whether a query sees a key if it is not padding and, where causal, not behind the query."""
    mask = inputs.mask
    return (
        mask.reach.before is None
        and mask.is_band
        and mask.is_per_token
        and not mask.differs_by_query
        and not may_hold_infinity(inputs.bias)
    )


def _poisoned_by_first_key(
    inputs: AttentionInputs, query: Tensor, key: Tensor, rows: Span
) -> Tensor:
    """Compares each query with the first key that is not finite: no (t, S) and no loop."""
    mask, columns = inputs.mask, inputs.columns()
    query = _slice_rows(query, rows)  # (B, K, G, t)
    real = mask.real_keys(columns)  # (B, S)
    if mask.reach.after is None:
        if real is None:
            return ops.logical_or(ops.any(key, axis=-1)[:, :, None, None], query)  # (B, K, G, t)
        key = ops.logical_and(key, real[:, None])  # (B, K, S)
        sees_key = ops.any(real, axis=-1)[:, None, None, None]  # (B, 1, 1, 1)
        sees_poison = ops.any(key, axis=-1)[:, :, None, None]  # (B, K, 1, 1)
        return ops.logical_or(sees_poison, ops.logical_and(query, sees_key))  # (B, K, G, t)
    never = np.iinfo("int32").max
    positions = mask.positions_of_keys(columns)  # (S) or (B, S)
    if real is not None:
        positions = cast("Tensor", ops.where(real, positions, never))  # (B, S)
    if len(positions.shape) == 2:
        positions = positions[:, None]  # (B, 1, S)
    first = ops.min(ops.where(key, positions, never), axis=-1)[:, :, None, None]  # (B, K, 1, 1)
    # The last position that each query sees.
    queries = mask.positions_of_queries(rows) + mask.reach.after  # (t) or (B, t)
    if len(queries.shape) == 2:
        queries = queries[:, None, None]  # (B, 1, 1, t)
    any_key = ops.min(positions, axis=-1)  # () or (B, 1)
    any_key = (
        ops.reshape(any_key, (-1, 1, 1, 1)) if len(positions.shape) == 3 else any_key
    )  # () or (B, 1, 1, 1)
    sees_poison, sees_key = (
        queries >= first,
        queries >= any_key,
    )  # (B, K, 1, t), (t) or (B, 1, 1, t)
    return ops.logical_or(sees_poison, ops.logical_and(query, sees_key))  # (B, K, G, t)


def _poisoned_in_blocks(inputs: AttentionInputs, query: Tensor, key: Tensor, rows: Span) -> Tensor:
    """Block by block: memory grows with T + S, not with T * S."""
    size = min(BLOCK, rows.size) if is_static(rows.size) else ops.minimum(BLOCK, rows.size)
    batch, kv_heads, groups = shape_of(query)[:3]

    def step(index: Tensor, found: Tensor) -> Tensor:
        start, last = index * size, rows.size - size
        start = min(start, last) if is_static(start, last) else ops.minimum(start, last)
        block = _poisoned_block(inputs, query, key, Span(rows.start + start, size))
        return ops.slice_update(found, (0, 0, 0, start), ops.cast(block, "int8"))

    found = ops.zeros((batch, kv_heads, groups, rows.size), dtype="int8")  # (B, K, G, t)
    count = (rows.size + BLOCK - 1) // BLOCK
    return ops.cast(ops.fori_loop(0, count, step, found), "bool")  # (B, K, G, t)


def _poisoned_block(inputs: AttentionInputs, query: Tensor, key: Tensor, rows: Span) -> Tensor:
    query = _slice_rows(query, rows)  # (B, K, G, t)
    key = key[:, :, None, None, :]  # (B, K, 1, 1, S)
    visible = _visible(inputs, rows)  # (B|1, K|1, G|1, t|1, S|1)
    if visible is None:
        return ops.logical_or(ops.any(key, axis=-1), query)  # (B, K, G, t)
    sees_key = ops.any(visible, axis=-1)  # (B|1, K|1, G|1, t|1)
    sees_poison = ops.any(ops.logical_and(visible, key), axis=-1)  # (B, K, G|1, t|1)
    return ops.logical_or(sees_poison, ops.logical_and(query, sees_key))  # (B, K, G, t)


def _visible(inputs: AttentionInputs, rows: Span) -> Tensor | None:
    columns, kv_heads = inputs.columns(), inputs.kv_heads
    masks = []
    mask = inputs.mask.block_mask(rows, columns)  # (B|1, N|1, t|1, S|1)
    if mask is not None:
        masks.append(group_heads(mask, kv_heads))
    if may_hold_infinity(inputs.bias):
        bias = inputs.bias.block(inputs.mask, rows, columns)  # (B|1, N|1, t|1, S|1)
        masks.append(group_heads(ops.not_equal(bias, float("-inf")), kv_heads))
    return functools.reduce(ops.logical_and, masks) if masks else None  # (B|1, K|1, G|1, t|1, S|1)


def _slice_rows(x: Tensor, rows: Span) -> Tensor:
    if is_static(rows.start):
        return x[:, :, :, rows.start : rows.stop]  # (B, K, G, t)
    return ops.slice(x, (0, 0, 0, rows.start), (*shape_of(x)[:3], rows.size))  # (B, K, G, t)


def _has_non_finite(x: Tensor) -> Tensor:
    """(..., X) to (...)."""
    return ops.logical_not(ops.all(ops.isfinite(x), axis=-1))  # (...)


def may_hold_infinity(bias: BlockBias | None) -> bool:
    """Whether a bias may mask keys out by minus infinity; those of positions never do."""
    if isinstance(bias, SumOfBiases):
        return any(may_hold_infinity(part) for part in bias.biases)
    return isinstance(bias, TensorBias)
