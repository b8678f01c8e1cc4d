"""Groups of key heads, which a kernel computes apart from one another."""

import dataclasses
from collections.abc import Sequence

import tensorflow as tf

from kerasattention.attend.bias import PlacingBias, of_heads
from kerasattention.attend.inputs import AttentionInputs
from kerasattention.attend.tensors import Span, Tensor, slice_axis


def can_split_heads(inputs: AttentionInputs) -> bool:
    """Whether nothing but queries, keys, values and a sink differs by head."""
    return inputs.bias is None and _has_one_mask(inputs)


def can_split_heads_and_bias(inputs: AttentionInputs) -> bool:
    """The same, or a bias whose gradients are added in the place of a head group.

    Only where no two query heads share a key head.
    """
    can_split_bias = inputs.bias is None or isinstance(inputs.bias, PlacingBias)
    return inputs.groups == 1 and can_split_bias and _has_one_mask(inputs)


def _has_one_mask(inputs: AttentionInputs) -> bool:
    # The dropout mask counts heads from the first.
    return inputs.mask.num_heads == 1 and inputs.rate == 0.0 and inputs.kv_heads > 1


def of_head_group(inputs: AttentionInputs, heads: Span) -> AttentionInputs:
    """The inputs of some of the key heads and of their queries."""
    if heads.size == inputs.kv_heads:
        return inputs
    return dataclasses.replace(
        inputs,
        query=slice_axis(inputs.query, 1, heads),  # (B, k, G, T, H)
        key=slice_axis(inputs.key, 1, heads),  # (B, k, S, H)
        value=slice_axis(inputs.value, 1, heads),  # (B, k, S, Hv)
        sink=None if inputs.sink is None else slice_axis(inputs.sink, 0, heads),  # (k, G)
        bias=None if inputs.bias is None else of_heads(inputs.bias, heads),
    )


def join_head_groups(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else tf.concat(parts, axis=1)  # (B, K, ...)
