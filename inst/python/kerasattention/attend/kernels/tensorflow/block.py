"""A block of queries on TensorFlow: its output and its gradients.

TensorFlow's softmax is one pass of oneDNN, faster than the exponential alone, while a maximum
or a mask's addition is another pass over the logits. So a block's weights are normalised at
once, and the backward pass takes the softmax again instead of restoring the weights from the
log of a denominator.
"""

from typing import NamedTuple

import keras
import tensorflow as tf

from kerasattention.attend import softmax
from kerasattention.attend.inputs import Problem, keep_factor, sink_logits
from kerasattention.attend.kernels.tensorflow.masking import (
    HIDDEN,
    has_infinities,
    hide,
    hiding_of,
    product,
    share_of_seen,
)
from kerasattention.attend.tensors import (
    Span,
    Tensor,
    is_static,
    slice_axis,
    stack_groups,
    unstack_groups,
)


class Weights(NamedTuple):
    """A block's softmax in two factors, and what the gradient of a cap needs.

    Attributes:
        weights: (B, K, G * t, s); each row sums to one.
        share: None or (B, K, G * t, 1), what of the sum belongs to the keys: 0 in a row
            without keys, and less than 1 beside a sink.
        of_sink: None or (B, K, G * t, 1), what of the sum belongs to a sink.
        capped: (B, K, G * t, s), the logits before bias and mask.
    """

    weights: Tensor
    share: Tensor | None
    of_sink: Tensor | None
    capped: Tensor


class Gradients(NamedTuple):
    """Of a block: (B, K, G, t, H), (B, K, s, H), (B, K, s, Hv), (K, G), (B, N, t, s)."""

    query: Tensor
    key: Tensor
    value: Tensor
    sink: Tensor | None
    logits: Tensor | None


class Block(NamedTuple):
    """Queries and the keys that they may see; the numbers may be tensors."""

    rows: Span
    columns: Span


def block_output(problem: Problem, block: Block) -> Tensor:
    """(B, K, G, t, Hv)."""
    weights, share, _, _ = _weights(problem, block)
    keep = _keep(problem, block)
    if keep is not None:
        weights = weights * keep
    output = tf.matmul(weights, _keys_of(problem.value, block.columns))
    if share is not None:
        output = output * share
    return unstack_groups(output, problem.groups)


def block_gradients(problem: Problem, block: Block, output: Tensor, upstream: Tensor) -> Gradients:
    """From what a block gave and the gradient of that, both (B, K, G, t, Hv)."""
    query = stack_groups(slice_axis(problem.query, 3, block.rows))
    key = _keys_of(problem.key, block.columns)
    value = _keys_of(problem.value, block.columns)
    weights, share, of_sink, capped = _weights(problem, block)
    output, upstream = stack_groups(output), stack_groups(upstream)
    # The softmax's own gradient: row sums of weight * d weight = output * d output.
    row_sums = tf.reduce_sum(output * upstream, axis=-1, keepdims=True)
    d_sink = None if problem.sink is None else _sink_gradient(problem, of_sink, row_sums)
    if share is not None:
        upstream, row_sums = upstream * share, row_sums * share
    keep = _keep(problem, block)
    if keep is None:
        dropped = weights
        # One more column subtracts the row sums within the product.
        left = tf.concat([upstream, -row_sums], axis=-1)
        right = tf.concat([value, tf.ones_like(value[..., :1])], axis=-1)
        d_logits = weights * tf.matmul(left, right, transpose_b=True)
    else:
        dropped = weights * keep
        d_logits = weights * (tf.matmul(upstream, value, transpose_b=True) * keep - row_sums)
    d_bias = _by_head(problem, d_logits) if _has_trained_bias(problem) else None
    if problem.soft_cap is not None:
        d_logits = d_logits * softmax.cap_gradient(capped, problem.soft_cap)
    return Gradients(
        query=unstack_groups(tf.matmul(d_logits, key), problem.groups),
        key=tf.matmul(d_logits, query, transpose_a=True),
        value=tf.matmul(dropped, upstream, transpose_a=True),
        sink=d_sink,
        logits=d_bias,
    )


def may_be_empty(problem: Problem, rows: Span) -> bool:
    """Whether one of these queries may see no key."""
    visibility = problem.visibility
    if has_infinities(problem) or visibility.hides_by_content:
        return True
    if not visibility.positions_are_indices:
        return True
    if not visibility.by_position or (visibility.causal and visibility.window is None):
        return visibility.causal and visibility.offset < 0
    keys = problem.key.shape[2]
    if not is_static(*rows, keys):
        return True
    first, last = rows.start + visibility.offset, rows.stop - 1 + visibility.offset
    behind_all = last - visibility.window + 1 >= keys
    before_all = first < 0 if visibility.causal else first <= -visibility.window
    return behind_all or before_all


def _weights(problem: Problem, block: Block) -> Weights:
    rows, columns = block
    hiding = hiding_of(problem, rows, columns)
    query = stack_groups(slice_axis(problem.query, 3, rows))
    logits = product(query, _keys_of(problem.key, columns), hiding)
    capped = softmax.cap(logits, problem.soft_cap)
    logits = hide(capped, hiding, problem.groups)
    if problem.sink is None and not may_be_empty(problem, rows):
        return Weights(tf.nn.softmax(logits), None, None, capped)
    if problem.sink is None and problem.bias is None and not hiding.is_nothing:
        seen = share_of_seen(problem, rows, columns, hiding, query)
        return Weights(tf.nn.softmax(logits), seen, None, capped)
    peak = tf.reduce_max(logits, axis=-1, keepdims=True)
    empty = peak < 0.1 * HIDDEN
    if has_infinities(problem):
        empty = tf.equal(peak, float("-inf"))
        # A row of minus infinities has no softmax; this lifts no other row.
        logits = tf.maximum(logits, tf.cast(tf.where(empty, 0.0, float("-inf")), peak.dtype))
    weights = tf.nn.softmax(logits)
    if problem.sink is None:
        return Weights(weights, tf.cast(tf.logical_not(empty), peak.dtype), None, capped)
    # The largest weight is exp(peak - log_sum).
    log_sum = peak - tf.math.log(tf.reduce_max(weights, axis=-1, keepdims=True))
    above = stack_groups(unstack_groups(log_sum, problem.groups) - sink_logits(problem))
    return Weights(weights, tf.sigmoid(above), tf.sigmoid(-above), capped)


def _keys_of(x: Tensor, columns: Span) -> Tensor:
    """(B, K, s, X) of (B, K, S, X); of one head without a copy, which only a first axis allows."""
    if x.shape[0] == x.shape[1] == 1 and is_static(*columns):
        rows = tf.reshape(x, x.shape[2:])[columns.start : columns.stop]
        return tf.reshape(rows, (1, 1, *rows.shape))
    return slice_axis(x, 2, columns)


def _keep(problem: Problem, block: Block) -> Tensor | None:
    keep = keep_factor(problem, block.rows, block.columns)
    return None if keep is None else stack_groups(keep)


def _sink_gradient(problem: Problem, of_sink: Tensor, row_sums: Tensor) -> Tensor:
    """(K, G): a sink's weight in a row takes part in the row's sum alone."""
    of_rows = unstack_groups(of_sink * row_sums, problem.groups)
    return -tf.reduce_sum(of_rows, axis=(0, 3, 4))


def _has_trained_bias(problem: Problem) -> bool:
    return problem.bias is not None and bool(problem.bias.tensors())


def _by_head(problem: Problem, x: Tensor) -> Tensor:
    """(B, K, G * t, s) to (B, N, t, s)."""
    x = unstack_groups(x, problem.groups)
    batch, kv_heads, groups, length, keys = keras.ops.shape(x)
    return tf.reshape(x, (batch, kv_heads * groups, length, keys))
