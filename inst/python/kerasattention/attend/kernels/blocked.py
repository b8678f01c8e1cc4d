"""The blocked way: exact attention over blocks of queries, linear in memory.

A block of queries sees only the keys that its causal limit and window leave, and
takes an ordinary softmax over them. The backward pass restores each block's
weights from the log of its denominator (FlashAttention: Dao et al. 2022).
"""

import dataclasses
from typing import NamedTuple

import keras
from keras import ops

from kerasattention.attend import softmax
from kerasattention.attend.gradient import with_gradient
from kerasattention.attend.inputs import (
    AttentionInputs,
    block_logits,
    forward_block,
    keep_factor,
    sink_logits,
)
from kerasattention.attend.kernels.plain import plain_attention
from kerasattention.attend.tensors import (
    Span,
    Tensor,
    matmul,
    slice_axis,
    stack_groups,
    transpose_last,
    unstack_groups,
)

BLOCK_SIZE = 256


@dataclasses.dataclass(frozen=True)
class Block:
    rows: Span
    columns: Span


def plan_blocks(inputs: AttentionInputs, size: int = BLOCK_SIZE) -> list[Block]:
    """The blocks of queries, each with the keys that any of its queries may see."""
    length, keys = inputs.query.shape[3], inputs.key.shape[2]
    blocks = []
    for start in range(0, length, size):
        rows = Span(start, min(size, length - start))
        blocks.append(Block(rows, inputs.mask.key_range(rows, keys)))
    return blocks


def blocked_attention(inputs: AttentionInputs, size: int | None = None) -> Tensor:
    """(B, K, G, T, Hv); T and S must be known, except on TensorFlow."""
    if 0 in (inputs.query.shape[3], inputs.key.shape[2]):
        return plain_attention(inputs)  # of no scores
    if keras.backend.backend() == "tensorflow":
        from kerasattention.attend.kernels.tensorflow import blocked as blocked_tensorflow

        return blocked_tensorflow.blocked_attention(inputs, size)
    size = BLOCK_SIZE if size is None else size
    if keras.backend.backend() == "torch":
        from kerasattention.attend.kernels.torch import tiled as tiled_torch

        return tiled_torch.tiled_attention(inputs, size)
    if _on_cpu_of_jax():
        from kerasattention.attend.kernels.jax.tiled import tiled_attention

        return tiled_attention(inputs, size)
    inputs = inputs.scaled()
    blocks = plan_blocks(inputs, size)

    def forward(named: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        given = inputs.with_tensors(named)
        parts = [_forward_block(given, block) for block in blocks]
        return tuple(ops.concatenate(part, axis=3) for part in zip(*parts, strict=True))

    def backward(
        named: dict[str, Tensor], output: Tensor, lse: Tensor, upstream: Tensor
    ) -> dict[str, Tensor]:
        given = inputs.with_tensors(named)
        return _backward_blocks(given, blocks, output, lse, upstream)

    return with_gradient(forward, backward, inputs)


def _on_cpu_of_jax() -> bool:
    if keras.backend.backend() != "jax":
        return False
    import jax

    return jax.default_backend() == "cpu"


def _forward_block(inputs: AttentionInputs, block: Block) -> tuple[Tensor, Tensor]:
    if block.columns.size > 0:
        return forward_block(inputs, block.rows, block.columns)
    batch, kv_heads, groups = ops.shape(inputs.query)[:3]
    shape = (batch, kv_heads, groups, block.rows.size)
    return (
        ops.zeros((*shape, inputs.value.shape[-1]), dtype=inputs.accumulator),
        ops.zeros((*shape, 1), dtype=inputs.accumulator),
    )


def _backward_blocks(
    inputs: AttentionInputs,
    blocks: list[Block],
    output: Tensor,
    lse: Tensor,
    upstream: Tensor,
) -> dict[str, Tensor]:
    upstream = ops.cast(upstream, inputs.accumulator)
    # The softmax's own gradient: row sums of weight * d weight = output * d output.
    delta = ops.sum(upstream * output, axis=-1, keepdims=True)  # (B, K, G, T, 1)
    queries = []
    totals: dict[str, Tensor] = {}
    keys = ops.zeros(ops.shape(inputs.key), dtype=inputs.accumulator)
    values = ops.zeros(ops.shape(inputs.value), dtype=inputs.accumulator)
    for block in blocks:
        part = [slice_axis(x, 3, block.rows) for x in (lse, delta, upstream)]
        if block.columns.size == 0:
            queries.append(ops.zeros_like(slice_axis(inputs.query, 3, block.rows)))
            continue
        query, key, value, others = _backward_block(inputs, block, *part)
        queries.append(query)
        keys = keys + _pad_to_keys(key, block.columns, inputs.key.shape[2])
        values = values + _pad_to_keys(value, block.columns, inputs.key.shape[2])
        for name, gradient in others.items():
            totals[name] = totals[name] + gradient if name in totals else gradient
    return {
        "query": ops.concatenate(queries, axis=3),
        "key": keys,
        "value": values,
        **sink_gradient(inputs, lse, delta),
        **totals,
    }


def _backward_block(
    inputs: AttentionInputs, block: Block, lse: Tensor, delta: Tensor, upstream: Tensor
) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """Gradients of one block's queries, keys, values and of the bias."""
    rows, columns = block.rows, block.columns
    query = stack_groups(slice_axis(inputs.query, 3, rows))
    key = slice_axis(inputs.key, 2, columns)
    logits, capped = block_logits(inputs, rows, columns)
    found = weight_gradients(inputs, rows, columns, logits, capped, lse, delta, upstream)
    upstream = stack_groups(ops.cast(upstream, inputs.value.dtype))
    d_value = matmul(transpose_last(found.weights), upstream)
    d_query = unstack_groups(matmul(found.products, key), inputs.groups)
    d_key = matmul(transpose_last(found.products), query)
    return d_query, d_key, d_value, _bias_gradient(inputs, block, found.logits)


class WeightGradients(NamedTuple):
    """The weights of a block after dropout (B, K, G * t, s), and the gradients of its
    logits (B, K, G, t, s) and of the products of queries and keys (B, K, G * t, s)."""

    weights: Tensor
    logits: Tensor
    products: Tensor


def weight_gradients(
    inputs: AttentionInputs,
    rows: Span,
    columns: Span,
    logits: Tensor,
    capped: Tensor,
    lse: Tensor,
    delta: Tensor,
    upstream: Tensor,
) -> WeightGradients:
    """Restores a block's weights from the log of the denominator, and their gradients."""
    value = slice_axis(inputs.value, 2, columns)
    weights = ops.exp(logits - lse)  # (B, K, G, t, s)
    upstream = stack_groups(ops.cast(upstream, value.dtype))
    d_weights = unstack_groups(matmul(upstream, transpose_last(value)), inputs.groups)
    keep = keep_factor(inputs, rows, columns)
    dropped = weights
    if keep is not None:
        dropped, d_weights = weights * keep, d_weights * keep
    d_logits = weights * (d_weights - delta)
    d_products = d_logits * softmax.cap_gradient(capped, inputs.soft_cap)
    return WeightGradients(
        stack_groups(ops.cast(dropped, value.dtype)),
        d_logits,
        stack_groups(ops.cast(d_products, inputs.key.dtype)),
    )


def _bias_gradient(inputs: AttentionInputs, block: Block, d_logits: Tensor) -> dict[str, Tensor]:
    if inputs.bias is None or not inputs.bias.tensors():
        return {}
    batch, kv_heads, groups, length, keys = ops.shape(d_logits)
    gradient = ops.reshape(d_logits, (batch, kv_heads * groups, length, keys))
    named = inputs.bias.block_gradient(gradient, inputs.mask, block.rows, block.columns)
    return {f"bias/{name}": tensor for name, tensor in named.items()}


def sink_gradient(inputs: AttentionInputs, lse: Tensor, delta: Tensor) -> dict[str, Tensor]:
    """Of the sink, where there is one: its weight in a row takes part in the row's sum alone."""
    sink = sink_logits(inputs)
    if sink is None:
        return {}
    weight = ops.exp(sink - lse)
    return {"sink": -ops.sum(weight * delta, axis=(0, 3, 4))}


def _pad_to_keys(part: Tensor, columns: Span, length: int) -> Tensor:
    """Pads (B, K, s, X) with zeros to (B, K, S, X)."""
    padding = [(0, 0), (0, 0), (columns.start, length - columns.stop), (0, 0)]
    return ops.pad(part, padding)
