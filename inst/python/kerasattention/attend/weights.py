"""Attention weights (B, N, T, S) to look at, or those of chosen queries."""

from keras import ops

from kerasattention.attend import softmax
from kerasattention.attend.block import block_logits, sink_logits
from kerasattention.attend.finite import with_finite_inputs
from kerasattention.attend.inputs import AttentionInputs
from kerasattention.attend.tensors import Span, Tensor, shape_of


def attention_weights(inputs: AttentionInputs, rows: Span | None = None) -> Tensor:
    """The softmax of some query rows, before dropout.

    Args:
        inputs: Of the attention call.
        rows: Which queries; None for all.

    Returns:
        (B, N, t, S) in float32. A row without keys is zero; with a sink a row
        sums to less than one.
    """
    rows = inputs.rows() if rows is None else rows
    weights = with_finite_inputs(
        inputs, lambda given: _weights(given.scaled(), rows), rows, of_values=False
    )  # (B, K, G, t, S)
    batch, kv_heads, groups, length, keys = shape_of(weights)
    weights = ops.reshape(weights, (batch, kv_heads * groups, length, keys))  # (B, N, t, S)
    mask = inputs.mask.query_mask
    if mask is None:
        return weights
    seen = mask[:, None, rows.start : rows.stop, None]  # (B, 1, t, 1)
    return ops.where(seen, weights, 0.0)  # (B, N, t, S)


def _weights(inputs: AttentionInputs, rows: Span) -> Tensor:
    logits, _ = block_logits(inputs, rows, inputs.columns())  # (B, K, G, t, S)
    numerator, denominator, _ = softmax.exponentiate(
        logits, sink_logits(inputs), inputs.may_be_empty, inputs.masked_out
    )  # (B, K, G, t, S), (B, K, G, t, 1)
    return numerator * softmax.reciprocal(denominator, inputs.may_be_empty)  # (B, K, G, t, S)
