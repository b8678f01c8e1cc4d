"""Groups of key heads, which a kernel computes apart from one another."""

import dataclasses
from collections.abc import Sequence

import tensorflow as tf

from kerasattention.attend.inputs import AttentionInputs
from kerasattention.attend.tensors import Span, Tensor, slice_axis


def can_split_heads(inputs: AttentionInputs) -> bool:
    """Whether nothing but queries, keys, values and a sink differs by head."""
    # The dropout mask counts heads from the first.
    one_mask = inputs.bias is None and inputs.mask.num_heads == 1
    return one_mask and inputs.rate == 0.0 and inputs.kv_heads > 1


def of_head_group(inputs: AttentionInputs, heads: Span) -> AttentionInputs:
    """The inputs of some of the key heads and of their queries."""
    if heads.size == inputs.kv_heads:
        return inputs
    return dataclasses.replace(
        inputs,
        query=slice_axis(inputs.query, 1, heads),  # (B, k, G, T, H)
        key=slice_axis(inputs.key, 1, heads),  # (B, k, S, H)
        value=slice_axis(inputs.value, 1, heads),  # (B, k, S, Hv)
        sink=None if inputs.sink is None else inputs.sink[heads.start : heads.stop],  # (k, G)
    )


def join_head_groups(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else tf.concat(parts, axis=1)  # (B, K, ...)
