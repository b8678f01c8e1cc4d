"""Attention to a part of the keys with its log-sum-exp, and the merge of such parts.

A softmax over all keys follows from the softmax over each part and the log-sum-exp of its logits
(Milakov and Gimelshein 2018; ring attention: Liu et al. 2023). So each device of a ring can attend
to the keys that it holds, and the parts can be merged in any order.
"""

from typing import NamedTuple

from keras import ops

from kerasattention.attend import softmax
from kerasattention.attend.bias import BlockBias
from kerasattention.attend.block import block_logits, combine
from kerasattention.attend.finite import with_finite_inputs
from kerasattention.attend.inputs import AttentionInputs
from kerasattention.attend.mask import AttentionMask
from kerasattention.attend.prepare import make_inputs
from kerasattention.attend.tensors import Tensor, join_query_heads, shape_of

_EMPTY = float("-inf")


class PartialAttention(NamedTuple):
    """Attention to a part of the keys.

    Attributes:
        output: (B, T, N, Hv) in float32 or float64, zero for a query that sees none of the keys.
        lse: (B, T, N, 1), the log-sum-exp of a query's logits, minus infinity for such a query.
    """

    output: Tensor
    lse: Tensor


def attend_to_part(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: AttentionMask | None = None,
    *,
    biases: list[BlockBias] | None = None,
    scale: float | None = None,
    soft_cap: float | None = None,
) -> PartialAttention:
    """Attends to some of the keys. It holds the logits of T queries and the S keys given.

    Args:
        query: (B, T, N, H).
        key: (B, S, K, H), the keys of this part.
        value: (B, S, K, Hv).
        mask: Of these queries and keys. A causal rule or window compares positions, so it needs
            `offset`, the position of the first query less that of the first key.
        biases: Of these queries and keys.
        scale: Factor of the logits, 1 / sqrt(H) by default.
        soft_cap: None or the cap of the logits.

    Returns:
        The output and the log-sum-exp. Both have gradients of any order. A sink is one more part:
        see `sink_part()`.
    """
    inputs = make_inputs(
        query, key, value, mask or AttentionMask(), biases=biases, scale=scale, soft_cap=soft_cap
    )
    both = join_query_heads(with_finite_inputs(inputs, _output_and_lse))  # (B, T, N, Hv + 1)
    return PartialAttention(both[..., :-1], both[..., -1:])


def _output_and_lse(inputs: AttentionInputs) -> Tensor:
    """(B, K, G, T, Hv + 1): the output, and the log-sum-exp as its last column."""
    inputs = inputs.scaled()
    logits, _ = block_logits(inputs, inputs.rows(), inputs.columns())  # (B, K, G, T, S)
    numerator, denominator, row_max = softmax.exponentiate(
        logits, None, may_be_empty=True, masked_out=inputs.masked_out
    )  # (B, K, G, T, S), (B, K, G, T, 1), (B, K, G, T, 1)
    output = combine(numerator, inputs.value, inputs.groups)  # (B, K, G, T, Hv)
    output = output * softmax.reciprocal(denominator, may_be_empty=True)  # (B, K, G, T, Hv)
    lse = _log(denominator) + row_max  # (B, K, G, T, 1)
    return ops.concatenate([output, lse], axis=-1)  # (B, K, G, T, Hv + 1)


def merge(first: PartialAttention, second: PartialAttention) -> PartialAttention:
    """Attention to the keys of both parts, which have no key in common."""
    larger = ops.where(first.lse > second.lse, first.lse, second.lse)  # (B, T, N, 1)
    shift = ops.stop_gradient(ops.where(larger == _EMPTY, 0.0, larger))  # (B, T, N, 1)
    weights = [ops.exp(part.lse - shift) for part in (first, second)]  # (B, T, N, 1)
    total = weights[0] + weights[1]  # (B, T, N, 1)
    output = first.output * weights[0] + second.output * weights[1]  # (B, T, N, Hv)
    output = output * softmax.reciprocal(total, may_be_empty=True)  # (B, T, N, Hv)
    return PartialAttention(output, _log(total) + shift)


def sink_part(sink: Tensor, like: PartialAttention) -> PartialAttention:
    """The part of a sink (N): it has no value and takes its share of the softmax's denominator."""
    logits = ops.cast(sink, like.lse.dtype)[None, None, :, None]  # (1, 1, N, 1)
    lse = ops.broadcast_to(logits, shape_of(like.lse))  # (B, T, N, 1)
    return PartialAttention(ops.zeros_like(like.output), lse)


def _log(total: Tensor) -> Tensor:
    """The logarithm, minus infinity for zero, whose gradient is zero there."""
    empty = total == 0.0
    return ops.where(empty, _EMPTY, ops.log(ops.where(empty, 1.0, total)))
