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
    Problem,
    block_logits,
    block_output,
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

BLOCK = 256


@dataclasses.dataclass(frozen=True)
class Block:
    rows: Span
    columns: Span


def plan_blocks(problem: Problem, size: int = BLOCK) -> list[Block]:
    """The blocks of queries, each with the keys that any of its queries may see."""
    length, keys = problem.query.shape[3], problem.key.shape[2]
    blocks = []
    for start in range(0, length, size):
        rows = Span(start, min(size, length - start))
        blocks.append(Block(rows, problem.visibility.key_range(rows, keys)))
    return blocks


def blocked_attention(problem: Problem, size: int | None = None) -> Tensor:
    """(B, K, G, T, Hv); T and S must be known, except on TensorFlow."""
    if 0 in (problem.query.shape[3], problem.key.shape[2]):
        return plain_attention(problem)  # of no scores
    if keras.backend.backend() == "tensorflow":
        from kerasattention.attend.kernels.tensorflow import blocked as blocked_tensorflow

        return blocked_tensorflow.blocked_attention(problem, size)
    size = BLOCK if size is None else size
    if keras.backend.backend() == "torch":
        from kerasattention.attend.kernels.torch import tiled as tiled_torch

        return tiled_torch.tiled_attention(problem, size)
    if _on_cpu_of_jax():
        from kerasattention.attend.kernels.jax.tiled import tiled_attention

        return tiled_attention(problem, size)
    problem = problem.scaled()
    blocks = plan_blocks(problem, size)

    def forward(named: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        given = problem.with_tensors(named)
        parts = [_forward_block(given, block) for block in blocks]
        return tuple(ops.concatenate(part, axis=3) for part in zip(*parts, strict=True))

    def backward(
        named: dict[str, Tensor], output: Tensor, log_sum: Tensor, upstream: Tensor
    ) -> dict[str, Tensor]:
        given = problem.with_tensors(named)
        return _backward_blocks(given, blocks, output, log_sum, upstream)

    return with_gradient(forward, backward, problem)


def _on_cpu_of_jax() -> bool:
    if keras.backend.backend() != "jax":
        return False
    import jax

    return jax.default_backend() == "cpu"


def _forward_block(problem: Problem, block: Block) -> tuple[Tensor, Tensor]:
    if block.columns.size > 0:
        return block_output(problem, block.rows, block.columns)
    batch, kv_heads, groups = ops.shape(problem.query)[:3]
    shape = (batch, kv_heads, groups, block.rows.size)
    return (
        ops.zeros((*shape, problem.value.shape[-1]), dtype=problem.accumulator),
        ops.zeros((*shape, 1), dtype=problem.accumulator),
    )


def _backward_blocks(
    problem: Problem,
    blocks: list[Block],
    output: Tensor,
    log_sum: Tensor,
    upstream: Tensor,
) -> dict[str, Tensor]:
    upstream = ops.cast(upstream, problem.accumulator)
    # The softmax's own gradient: row sums of weight * d weight = output * d output.
    row_sums = ops.sum(upstream * output, axis=-1, keepdims=True)  # (B, K, G, T, 1)
    queries = []
    totals: dict[str, Tensor] = {}
    keys = ops.zeros(ops.shape(problem.key), dtype=problem.accumulator)
    values = ops.zeros(ops.shape(problem.value), dtype=problem.accumulator)
    for block in blocks:
        part = [slice_axis(x, 3, block.rows) for x in (log_sum, row_sums, upstream)]
        if block.columns.size == 0:
            queries.append(ops.zeros_like(slice_axis(problem.query, 3, block.rows)))
            continue
        query, key, value, others = _backward_block(problem, block, *part)
        queries.append(query)
        keys = keys + _place(key, block.columns, problem.key.shape[2])
        values = values + _place(value, block.columns, problem.key.shape[2])
        for name, gradient in others.items():
            totals[name] = totals[name] + gradient if name in totals else gradient
    return {
        "query": ops.concatenate(queries, axis=3),
        "key": keys,
        "value": values,
        **sink_gradient(problem, log_sum, row_sums),
        **totals,
    }


def _backward_block(
    problem: Problem, block: Block, log_sum: Tensor, row_sums: Tensor, upstream: Tensor
) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """Gradients of one block's queries, keys, values and of the bias."""
    rows, columns = block.rows, block.columns
    query = stack_groups(slice_axis(problem.query, 3, rows))
    key = slice_axis(problem.key, 2, columns)
    logits, capped = block_logits(problem, rows, columns)
    found = weight_gradients(problem, rows, columns, logits, capped, log_sum, row_sums, upstream)
    upstream = stack_groups(ops.cast(upstream, problem.value.dtype))
    d_value = matmul(transpose_last(found.weights), upstream)
    d_query = unstack_groups(matmul(found.products, key), problem.groups)
    d_key = matmul(transpose_last(found.products), query)
    return d_query, d_key, d_value, _bias_gradient(problem, block, found.logits)


class WeightGradients(NamedTuple):
    """The weights of a block after dropout (B, K, G * t, s), and the gradients of its
    logits (B, K, G, t, s) and of the products of queries and keys (B, K, G * t, s)."""

    weights: Tensor
    logits: Tensor
    products: Tensor


def weight_gradients(
    problem: Problem,
    rows: Span,
    columns: Span,
    logits: Tensor,
    capped: Tensor,
    log_sum: Tensor,
    row_sums: Tensor,
    upstream: Tensor,
) -> WeightGradients:
    """Restores a block's weights from the log of the denominator, and their gradients."""
    value = slice_axis(problem.value, 2, columns)
    weights = ops.exp(logits - log_sum)  # (B, K, G, t, s)
    upstream = stack_groups(ops.cast(upstream, value.dtype))
    d_weights = unstack_groups(matmul(upstream, transpose_last(value)), problem.groups)
    keep = keep_factor(problem, rows, columns)
    dropped = weights
    if keep is not None:
        dropped, d_weights = weights * keep, d_weights * keep
    d_logits = weights * (d_weights - row_sums)
    d_products = d_logits * softmax.cap_gradient(capped, problem.soft_cap)
    return WeightGradients(
        stack_groups(ops.cast(dropped, value.dtype)),
        d_logits,
        stack_groups(ops.cast(d_products, problem.key.dtype)),
    )


def _bias_gradient(problem: Problem, block: Block, d_logits: Tensor) -> dict[str, Tensor]:
    if problem.bias is None or not problem.bias.tensors():
        return {}
    batch, kv_heads, groups, length, keys = ops.shape(d_logits)
    gradient = ops.reshape(d_logits, (batch, kv_heads * groups, length, keys))
    named = problem.bias.block_gradient(gradient, problem.visibility, block.rows, block.columns)
    return {f"bias/{name}": tensor for name, tensor in named.items()}


def sink_gradient(problem: Problem, log_sum: Tensor, row_sums: Tensor) -> dict[str, Tensor]:
    """Of the sink, where there is one: its weight in a row takes part in the row's sum alone."""
    sink = sink_logits(problem)
    if sink is None:
        return {}
    weight = ops.exp(sink - log_sum)
    return {"sink": -ops.sum(weight * row_sums, axis=(0, 3, 4))}


def _place(part: Tensor, columns: Span, length: int) -> Tensor:
    """Pads (B, K, s, X) with zeros to (B, K, S, X)."""
    padding = [(0, 0), (0, 0), (columns.start, length - columns.stop), (0, 0)]
    return ops.pad(part, padding)
