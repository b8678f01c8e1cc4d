"""The mathematics of one block of queries and keys, forward and backward.

Every kernel written in Python and the attention weights are made of these functions, so that a
mask, bias, cap, sink or dropout is written once. TensorFlow's kernels override the forward and
backward pass of a block in `kernels/tensorflow/block.py`, torch's in `kernels/torch/tiled.py`;
both keep the functions of sink and dropout.
"""

from typing import NamedTuple, cast

from keras import ops

from kerasattention.attend import softmax
from kerasattention.attend.dropout import keep_block
from kerasattention.attend.inputs import AttentionInputs
from kerasattention.attend.tensors import (
    Columns,
    Span,
    Tensor,
    group_heads,
    matmul,
    shape_of,
    shifted,
    slice_axis,
    stack_groups,
    transpose_last,
    unstack_groups,
)


class Block(NamedTuple):
    """A block of queries and the keys that they may see. Numbers may be tensors in a graph."""

    rows: Span
    columns: Columns


def plan_blocks(inputs: AttentionInputs, size: int) -> list[Block]:
    """The blocks of queries, each with the keys that any of its queries may see."""
    length, keys = inputs.query.shape[3], inputs.key.shape[2]
    blocks = []
    for start in range(0, length, size):
        rows = Span(start, min(size, length - start))
        blocks.append(Block(rows, inputs.mask.key_columns(rows, keys)))
    return blocks


def block_logits(
    inputs: AttentionInputs, rows: Span, columns: Columns, query: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Logits (B, K, G, t, s) with and without bias and mask (the cap applied to both).

    `query` is what the rows of the queries were, where those have given way to gradients.
    """
    if query is None:
        query = slice_axis(inputs.query, 3, rows)  # (B, K, G, t, H)
    query = stack_groups(query)  # (B, K, G * t, H)
    key = slice_axis(inputs.key, 2, columns)  # (B, K, s, H)
    logits = matmul(query, transpose_last(key))  # (B, K, G * t, s)
    logits = unstack_groups(logits, inputs.groups)  # (B, K, G, t, s)
    capped = softmax.cap(logits, inputs.soft_cap)  # (B, K, G, t, s)
    logits = capped
    if inputs.bias is not None:
        bias = inputs.bias.block(inputs.mask, rows, columns)  # (B|1, N|1, t|1, s|1)
        bias = ops.cast(bias, inputs.accumulator)  # (B|1, N|1, t|1, s|1)
        logits = logits + group_heads(bias, inputs.kv_heads)  # (B, K, G, t, s)
    mask = inputs.mask.block_mask(rows, columns)  # (B|1, N|1, t|1, s|1)
    if mask is not None:
        logits = softmax.mask_logits(
            logits, group_heads(mask, inputs.kv_heads), inputs.masked_out
        )  # (B, K, G, t, s)
    return logits, capped


def sink_logits(inputs: AttentionInputs) -> Tensor | None:
    """(1, K, G, 1, 1), to be joined to the logits of a block."""
    if inputs.sink is None:
        return None
    return ops.cast(inputs.sink, inputs.accumulator)[None, :, :, None, None]  # (1, K, G, 1, 1)


def keep_factor(inputs: AttentionInputs, rows: Span, columns: Columns) -> Tensor | None:
    """(B, K, G, t, s): 0 where a weight is dropped, 1 / (1 - rate) elsewhere."""
    if inputs.rate == 0.0:
        return None
    batch, kv_heads, groups = shape_of(inputs.query)[:3]
    keep = keep_block(
        inputs.seed,
        Span(inputs.first_sample, batch),
        Span(inputs.first_head, kv_heads * groups),
        shifted(rows, inputs.first_query),
        shifted(columns, inputs.first_key),
        inputs.rate,
    )  # (B, N, t, s)
    keep = group_heads(keep, inputs.kv_heads)  # (B, K, G, t, s)
    return ops.cast(keep, inputs.accumulator) * (1.0 / (1.0 - inputs.rate))  # (B, K, G, t, s)


def combine(weights: Tensor, value: Tensor, groups: int) -> Tensor:
    """(B, K, G, t, s) weights and (B, K, s, Hv) values to (B, K, G, t, Hv)."""
    weights = ops.cast(weights, value.dtype)  # (B, K, G, t, s)
    return unstack_groups(matmul(stack_groups(weights), value), groups)  # (B, K, G, t, Hv)


def forward_block(
    inputs: AttentionInputs, rows: Span, columns: Columns, lse_of_empty: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The output (B, K, G, t, Hv) of some queries over all keys that they see.

    Returns:
        The output and the lse (B, K, G, t, 1), from which a backward pass restores the
        weights; `lse_of_empty` for a row without keys.
    """
    logits, _ = block_logits(inputs, rows, columns)  # (B, K, G, t, s)
    numerator, denominator, row_max = softmax.exponentiate(
        logits, sink_logits(inputs), inputs.may_be_empty, inputs.masked_out
    )  # (B, K, G, t, s), (B, K, G, t, 1), (B, K, G, t, 1)
    keep = keep_factor(inputs, rows, columns)  # (B, K, G, t, s)
    if keep is not None:
        numerator = numerator * keep  # (B, K, G, t, s)
    value = slice_axis(inputs.value, 2, columns)  # (B, K, s, Hv)
    output = combine(numerator, value, inputs.groups)  # (B, K, G, t, Hv)
    # Dividing the output is S / Hv times less work than dividing the weights.
    output = output * softmax.reciprocal(denominator, inputs.may_be_empty)  # (B, K, G, t, Hv)
    empty = denominator == 0.0  # (B, K, G, t, 1)
    lse = row_max + ops.log(ops.where(empty, 1.0, denominator))  # (B, K, G, t, 1)
    if lse_of_empty:
        lse = cast("Tensor", ops.where(empty, lse_of_empty, lse))  # (B, K, G, t, 1)
    return output, lse


# Backward ------------------------------------------------------------------------------


class WeightGradients(NamedTuple):
    """The weights of a block after dropout (B, K, G * t, s), and the gradients of its
    logits (B, K, G, t, s) and of the products of queries and keys (B, K, G * t, s)."""

    weights: Tensor
    logits: Tensor
    products: Tensor


def weight_gradients(
    inputs: AttentionInputs,
    rows: Span,
    columns: Columns,
    logits: Tensor,
    capped: Tensor,
    lse: Tensor,
    delta: Tensor,
    upstream: Tensor,
) -> WeightGradients:
    """Restores a block's weights from the log of the denominator, and their gradients."""
    value = slice_axis(inputs.value, 2, columns)  # (B, K, s, Hv)
    weights = ops.exp(logits - lse)  # (B, K, G, t, s)
    upstream = stack_groups(ops.cast(upstream, value.dtype))  # (B, K, G * t, Hv)
    d_weights = unstack_groups(
        matmul(upstream, transpose_last(value)), inputs.groups
    )  # (B, K, G, t, s)
    keep = keep_factor(inputs, rows, columns)  # (B, K, G, t, s)
    dropped = weights
    if keep is not None:
        dropped, d_weights = weights * keep, d_weights * keep  # (B, K, G, t, s)
    d_logits = weights * (d_weights - delta)  # (B, K, G, t, s)
    d_products = d_logits * softmax.cap_gradient(capped, inputs.soft_cap)  # (B, K, G, t, s)
    return WeightGradients(
        stack_groups(ops.cast(dropped, value.dtype)),  # (B, K, G * t, s)
        d_logits,
        stack_groups(ops.cast(d_products, inputs.key.dtype)),  # (B, K, G * t, s)
    )


def sink_gradient(inputs: AttentionInputs, lse: Tensor, delta: Tensor) -> dict[str, Tensor]:
    """The gradient of a sink, whose weight is only a term of a row's sum."""
    sink = sink_logits(inputs)  # (1, K, G, 1, 1)
    if sink is None:
        return {}
    weight = ops.exp(sink - lse)  # (B, K, G, T, 1)
    return {"sink": -ops.sum(weight * delta, axis=(0, 3, 4))}  # (K, G)
