"""Exact attention over blocks of queries, linear in memory, on any backend and device.

A block of queries is given only the keys that the rules of positions leave, and takes an
ordinary softmax over them. The backward pass restores each block's weights from the log of its
denominator (FlashAttention: Dao et al. 2022).
"""

from keras import ops

from kerasattention.attend.block import (
    Block,
    block_logits,
    forward_block,
    plan_blocks,
    sink_gradient,
    weight_gradients,
)
from kerasattention.attend.gradient import with_gradient
from kerasattention.attend.inputs import AttentionInputs
from kerasattention.attend.tensors import (
    Tensor,
    matmul,
    pad_columns,
    shape_of,
    slice_axis,
    stack_groups,
    transpose_last,
    unstack_groups,
)

# Queries of a block.
BLOCK_SIZE = 256


def blocked_attention(inputs: AttentionInputs, block_size: int | None = None) -> Tensor:
    """(B, K, G, T, Hv); T and S must be known."""
    inputs = inputs.scaled()
    blocks = plan_blocks(inputs, block_size or BLOCK_SIZE)

    def forward(given: AttentionInputs) -> tuple[Tensor, Tensor]:
        return forward_with_lse(given, blocks)

    def backward(
        given: AttentionInputs, output: Tensor, lse: Tensor, upstream: Tensor
    ) -> dict[str, Tensor]:
        return _backward_blocks(given, blocks, output, lse, upstream)

    return with_gradient(forward, backward, inputs)


def forward_with_lse(
    inputs: AttentionInputs, blocks: list[Block], lse_of_empty: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Output (B, K, G, T, Hv) and lse (B, K, G, T, 1), `lse_of_empty` for a row without keys."""
    parts = [_forward_block(inputs, block, lse_of_empty) for block in blocks]
    outputs, lses = zip(*parts, strict=True)
    return ops.concatenate(outputs, axis=3), ops.concatenate(
        lses, axis=3
    )  # (B, K, G, T, Hv), (B, K, G, T, 1)


def _forward_block(
    inputs: AttentionInputs, block: Block, lse_of_empty: float
) -> tuple[Tensor, Tensor]:
    if block.columns.size > 0:
        return forward_block(inputs, block.rows, block.columns, lse_of_empty)
    batch, kv_heads, groups = shape_of(inputs.query)[:3]
    shape = (batch, kv_heads, groups, block.rows.size)
    return (
        ops.zeros((*shape, inputs.value.shape[-1]), dtype=inputs.accumulator),  # (B, K, G, t, Hv)
        ops.full((*shape, 1), lse_of_empty, dtype=inputs.accumulator),  # (B, K, G, t, 1)
    )


def _backward_blocks(
    inputs: AttentionInputs,
    blocks: list[Block],
    output: Tensor,
    lse: Tensor,
    upstream: Tensor,
) -> dict[str, Tensor]:
    upstream = ops.cast(upstream, inputs.accumulator)  # (B, K, G, T, Hv)
    # The softmax's own gradient: delta, the row sums of dO * O.
    delta = ops.sum(upstream * output, axis=-1, keepdims=True)  # (B, K, G, T, 1)
    found = backward_from_lse(inputs, blocks, lse, delta, upstream)
    return found | sink_gradient(inputs, lse, delta)


def backward_from_lse(
    inputs: AttentionInputs, blocks: list[Block], lse: Tensor, delta: Tensor, upstream: Tensor
) -> dict[str, Tensor]:
    """The gradients of all but a sink, of the lse and delta of all keys, which may be more."""
    queries = []
    totals: dict[str, Tensor] = {}
    keys = ops.zeros(shape_of(inputs.key), dtype=inputs.accumulator)  # (B, K, S, H)
    values = ops.zeros(shape_of(inputs.value), dtype=inputs.accumulator)  # (B, K, S, Hv)
    for block in blocks:
        part = [
            slice_axis(x, 3, block.rows) for x in (lse, delta, upstream)
        ]  # (B, K, G, t, 1), (B, K, G, t, 1), (B, K, G, t, Hv)
        if block.columns.size == 0:
            queries.append(
                ops.zeros_like(slice_axis(inputs.query, 3, block.rows))
            )  # (B, K, G, t, H)
            continue
        query, key, value, others = _backward_block(inputs, block, *part)
        queries.append(query)
        keys = keys + pad_columns(key, 2, block.columns, inputs.key.shape[2])  # (B, K, S, H)
        values = values + pad_columns(value, 2, block.columns, inputs.key.shape[2])  # (B, K, S, Hv)
        for name, gradient in others.items():
            totals[name] = totals[name] + gradient if name in totals else gradient
    return {
        "query": ops.concatenate(queries, axis=3),  # (B, K, G, T, H)
        "key": keys,
        "value": values,
        **totals,
    }


def _backward_block(
    inputs: AttentionInputs, block: Block, lse: Tensor, delta: Tensor, upstream: Tensor
) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """Gradients of one block's queries, keys, values and of the bias."""
    rows, columns = block.rows, block.columns
    query = stack_groups(slice_axis(inputs.query, 3, rows))  # (B, K, G * t, H)
    key = slice_axis(inputs.key, 2, columns)  # (B, K, s, H)
    logits, capped = block_logits(inputs, rows, columns)  # (B, K, G, t, s)
    found = weight_gradients(inputs, rows, columns, logits, capped, lse, delta, upstream)
    upstream = stack_groups(ops.cast(upstream, inputs.value.dtype))  # (B, K, G * t, Hv)
    d_value = matmul(transpose_last(found.weights), upstream)  # (B, K, s, Hv)
    d_query = unstack_groups(matmul(found.products, key), inputs.groups)  # (B, K, G, t, H)
    d_key = matmul(transpose_last(found.products), query)  # (B, K, s, H)
    return d_query, d_key, d_value, _bias_gradient(inputs, block, found.logits)


def _bias_gradient(inputs: AttentionInputs, block: Block, d_logits: Tensor) -> dict[str, Tensor]:
    if inputs.bias is None or not inputs.bias.differentiable():
        return {}
    batch, kv_heads, groups, length, keys = shape_of(d_logits)
    gradient = ops.reshape(d_logits, (batch, kv_heads * groups, length, keys))  # (B, N, t, s)
    named = inputs.bias.block_gradient(gradient, inputs.mask, block.rows, block.columns)
    return {f"bias/{name}": tensor for name, tensor in named.items()}
