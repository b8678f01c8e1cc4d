"""A block of queries on TensorFlow: its output and its gradients.

TensorFlow's softmax is one pass of oneDNN, faster than the exponential by itself, while a maximum
or a mask's addition is another pass over the logits. So a block's weights are normalised at
once, and the backward pass takes the softmax again instead of restoring the weights from the
log of a denominator.
"""

from typing import NamedTuple

import tensorflow as tf

from kerasattention.attend import softmax
from kerasattention.attend.block import Block, keep_factor, sink_logits
from kerasattention.attend.inputs import AttentionInputs
from kerasattention.attend.kernels.tensorflow.masking import (
    MASKED_OUT,
    BlockMasking,
    apply_masking,
    has_infinities,
    masking_of,
    product,
    share_of_visible,
)
from kerasattention.attend.tensors import (
    Columns,
    Span,
    Tensor,
    shape_of,
    slice_axis,
    stack_groups,
    unstack_groups,
)


class BlockWeights(NamedTuple):
    """The softmax of a block in two factors, and the capped logits for the gradient of the cap.

    Attributes:
        weights: (B, K, G * t, s); each row sums to one.
        share: None or (B, K, G * t, 1), the share of the sum that belongs to the keys: 0 in a row
            without keys, and less than 1 beside a sink.
        of_sink: None or (B, K, G * t, 1), the share that belongs to a sink.
        capped: (B, K, G * t, s), the logits before bias and mask.
    """

    weights: Tensor
    share: Tensor | None
    of_sink: Tensor | None
    capped: Tensor


class BlockGradients(NamedTuple):
    """Of a block: (B, K, G, t, H), (B, K, s, H), (B, K, s, Hv), (K, G), (B, N, t, s)."""

    query: Tensor
    key: Tensor
    value: Tensor
    sink: Tensor | None
    logits: Tensor | None


def block_output(
    inputs: AttentionInputs, block: Block, masking: BlockMasking | None = None
) -> Tensor:
    """(B, K, G, t, Hv); `masking` is that of the block, where several groups of heads share it."""
    weights, share, _, _ = _weights(inputs, block, masking)  # (B, K, G * t, s), (B, K, G * t, 1)
    keep = _keep(inputs, block)  # (B, K, G * t, s)
    if keep is not None:
        weights = weights * keep  # (B, K, G * t, s)
    output = tf.matmul(weights, _keys_of(inputs.value, block.columns))  # (B, K, G * t, Hv)
    if share is not None:
        output = output * share  # (B, K, G * t, Hv)
    return unstack_groups(output, inputs.groups)  # (B, K, G, t, Hv)


def row_sums(output: Tensor, upstream: Tensor) -> Tensor:
    """The softmax's own gradient: delta, the row sums of dO * O, (B, K, G, t, 1)."""
    return tf.reduce_sum(output * upstream, axis=-1, keepdims=True)


def block_gradients(
    inputs: AttentionInputs,
    block: Block,
    delta: Tensor,
    upstream: Tensor,
    masking: BlockMasking | None = None,
) -> BlockGradients:
    """From the gradient of a block's output (B, K, G, t, Hv) and `row_sums()` of both."""
    query = stack_groups(slice_axis(inputs.query, 3, block.rows))  # (B, K, G * t, H)
    key = _keys_of(inputs.key, block.columns)  # (B, K, s, H)
    value = _keys_of(inputs.value, block.columns)  # (B, K, s, Hv)
    weights, share, of_sink, capped = _weights(inputs, block, masking)
    delta, upstream = stack_groups(delta), stack_groups(upstream)  # (B, K, G * t, 1|Hv)
    d_sink = None if inputs.sink is None else _sink_gradient(inputs, of_sink, delta)  # (K, G)
    if share is not None:
        upstream, delta = upstream * share, delta * share  # (B, K, G * t, Hv), (B, K, G * t, 1)
    keep = _keep(inputs, block)  # (B, K, G * t, s)
    if keep is None:
        dropped = weights  # (B, K, G * t, s)
        # One more column subtracts the row sums within the product.
        left = tf.concat([upstream, -delta], axis=-1)  # (B, K, G * t, Hv + 1)
        right = tf.concat([value, tf.ones_like(value[..., :1])], axis=-1)  # (B, K, s, Hv + 1)
        d_logits = weights * tf.matmul(left, right, transpose_b=True)  # (B, K, G * t, s)
    else:
        dropped = weights * keep  # (B, K, G * t, s)
        d_logits = weights * (
            tf.matmul(upstream, value, transpose_b=True) * keep - delta
        )  # (B, K, G * t, s)
    d_bias = _by_head(inputs, d_logits) if _has_trained_bias(inputs) else None  # (B, N, t, s)
    if inputs.soft_cap is not None:
        d_logits = d_logits * softmax.cap_gradient(capped, inputs.soft_cap)  # (B, K, G * t, s)
    return BlockGradients(
        query=unstack_groups(tf.matmul(d_logits, key), inputs.groups),  # (B, K, G, t, H)
        key=tf.matmul(d_logits, query, transpose_a=True),  # (B, K, s, H)
        value=tf.matmul(dropped, upstream, transpose_a=True),  # (B, K, s, Hv)
        sink=d_sink,
        logits=d_bias,
    )


def may_be_empty(inputs: AttentionInputs, rows: Span) -> bool:
    """Whether one of these queries may see no key."""
    return has_infinities(inputs) or inputs.mask.may_leave_empty(rows, inputs.key.shape[2])


def _weights(inputs: AttentionInputs, block: Block, masking: BlockMasking | None) -> BlockWeights:
    rows, columns = block
    masking = masking_of(inputs, rows, columns) if masking is None else masking
    query = stack_groups(slice_axis(inputs.query, 3, rows))  # (B, K, G * t, H)
    logits = product(query, _keys_of(inputs.key, columns), masking)  # (B, K, G * t, s)
    capped = softmax.cap(logits, inputs.soft_cap)  # (B, K, G * t, s)
    logits = apply_masking(capped, masking, inputs.groups)  # (B, K, G * t, s)
    if inputs.sink is None and not may_be_empty(inputs, rows):
        return BlockWeights(tf.nn.softmax(logits), None, None, capped)
    if inputs.sink is None and inputs.bias is None and not masking.is_empty:
        visible = share_of_visible(inputs, rows, columns, masking, query)  # (B, K, G * t, 1)
        return BlockWeights(tf.nn.softmax(logits), visible, None, capped)
    row_max = tf.reduce_max(logits, axis=-1, keepdims=True)  # (B, K, G * t, 1)
    empty = row_max < 0.1 * MASKED_OUT  # (B, K, G * t, 1)
    if has_infinities(inputs):
        empty = tf.equal(row_max, float("-inf"))  # (B, K, G * t, 1)
        # A row of minus infinities has no softmax; this lifts no other row.
        logits = tf.maximum(
            logits, tf.cast(tf.where(empty, 0.0, float("-inf")), row_max.dtype)
        )  # (B, K, G * t, s)
    weights = tf.nn.softmax(logits)  # (B, K, G * t, s)
    if inputs.sink is None:
        return BlockWeights(weights, tf.cast(tf.logical_not(empty), row_max.dtype), None, capped)
    # The largest weight is exp(row_max - lse).
    lse = row_max - tf.math.log(tf.reduce_max(weights, axis=-1, keepdims=True))  # (B, K, G * t, 1)
    above = stack_groups(
        unstack_groups(lse, inputs.groups) - sink_logits(inputs)
    )  # (B, K, G * t, 1)
    return BlockWeights(weights, tf.sigmoid(above), tf.sigmoid(-above), capped)


def _keys_of(x: Tensor, columns: Columns) -> Tensor:
    """(B, K, s, X) of (B, K, S, X); of one head without a copy, which only a first axis allows."""
    if x.shape[0] == x.shape[1] == 1 and isinstance(columns, Span):
        rows = tf.reshape(x, shape_of(x)[2:])[columns.start : columns.stop]  # (s, X)
        return tf.reshape(rows, (1, 1, *shape_of(rows)))  # (1, 1, s, X)
    return slice_axis(x, 2, columns)  # (B, K, s, X)


def _keep(inputs: AttentionInputs, block: Block) -> Tensor | None:
    keep = keep_factor(inputs, block.rows, block.columns)  # (B, K, G, t, s)
    return None if keep is None else stack_groups(keep)


def _sink_gradient(inputs: AttentionInputs, of_sink: Tensor, delta: Tensor) -> Tensor:
    """(K, G): the weight of a sink is only a term of the row's sum."""
    of_rows = unstack_groups(of_sink * delta, inputs.groups)  # (B, K, G, t, 1)
    return -tf.reduce_sum(of_rows, axis=(0, 3, 4))  # (K, G)


def _has_trained_bias(inputs: AttentionInputs) -> bool:
    return inputs.bias is not None and bool(inputs.bias.differentiable())


def _by_head(inputs: AttentionInputs, x: Tensor) -> Tensor:
    """(B, K, G * t, s) to (B, N, t, s)."""
    x = unstack_groups(x, inputs.groups)  # (B, K, G, t, s)
    batch, kv_heads, groups, length, keys = shape_of(x)
    return tf.reshape(x, (batch, kv_heads * groups, length, keys))  # (B, N, t, s)
