"""Calls of torch's attention kernels: what they refuse, and the views that each call is given.

In a call of strided blocks the blocks of one sample take the place of the batch.
"""

import dataclasses

import torch
import torch.nn.functional as F

from kerasattention.attend.inputs import AttentionInputs
from kerasattention.attend.tensors import KeySpans
from kerasattention.attend.tiling import StridedBlocks, additive_mask

Tensor = torch.Tensor


def unsupported(inputs: AttentionInputs) -> str | None:
    """The argument that none of torch's kernels honours, if there is one."""
    if inputs.soft_cap is not None:
        return "logit_soft_cap"
    if inputs.rate > 0.0:
        return "dropout"
    if _bias_is_trained(inputs):
        return "attention_bias (one with a gradient)"
    if not inputs.query.dtype == inputs.key.dtype == inputs.value.dtype:
        return "query, key and value (of different dtypes)"
    return None


def _bias_is_trained(inputs: AttentionInputs) -> bool:
    if inputs.bias is None or not torch.is_grad_enabled():
        return False
    return any(x.requires_grad for x in inputs.bias.tensors().values())


def prepared(inputs: AttentionInputs) -> AttentionInputs:
    """The inputs as the kernels read them: one head size, and a contiguous last axis."""
    return _with_unit_strides(_with_one_head_size(inputs))


def _with_one_head_size(inputs: AttentionInputs) -> AttentionInputs:
    """Fills the smaller of H and Hv up with zeros, which change neither logits nor output."""
    missing = inputs.query.shape[-1] - inputs.value.shape[-1]
    if missing > 0:
        return dataclasses.replace(inputs, value=F.pad(inputs.value, (0, missing)))  # (B, K, S, H)
    if missing < 0:
        query, key = (
            F.pad(x, (0, -missing)) for x in (inputs.query, inputs.key)
        )  # (B, K, G, T, Hv), (B, K, S, Hv)
        return dataclasses.replace(inputs, query=query, key=key)
    return inputs


def _with_unit_strides(inputs: AttentionInputs) -> AttentionInputs:
    """The kernels read whole heads: the last axis must be contiguous."""
    query, key, value = (
        x if x.stride(-1) == 1 else x.contiguous() for x in (inputs.query, inputs.key, inputs.value)
    )
    return dataclasses.replace(inputs, query=query, key=key, value=value)


def is_one_call(inputs: AttentionInputs, calls: list[StridedBlocks]) -> bool:
    """Whether one call does it all."""
    keys = inputs.columns()
    return len(calls) == 1 and calls[0].count == 1 and calls[0].columns == keys and keys.size > 0


def rows_of(x: Tensor, blocks: StridedBlocks, sample: int | None) -> Tensor:
    """(B, K, G, T, X) to (B, K, G, t, X), or of one sample to (count, K, G, t, X)."""
    start, size = blocks.rows
    if sample is None:
        return x[:, :, :, start : start + size]  # (B, K, G, t, X)
    run = x[sample, :, :, start : start + blocks.count * size]  # (K, G, count * t, X)
    return run.unflatten(2, (blocks.count, size)).movedim(2, 0)  # (count, K, G, t, X)


def columns_of(x: Tensor, blocks: StridedBlocks, sample: int | None) -> Tensor:
    """(B, K, S, X) to (B, K, s, X), or of one sample to (count, K, s, X), overlapping."""
    if isinstance(blocks.columns, KeySpans):
        parts = [columns_of(x, part, sample) for part in blocks.spans]
        return torch.cat(parts, dim=2)  # (B, K, s, X), or (count, K, s, X)
    start, size = blocks.columns
    if sample is not None and blocks.fixed:
        one = x[sample, :, start : start + size]  # (K, s, X)
        return one.expand(blocks.count, -1, -1, -1)  # (count, K, s, X)
    if sample is None:
        return x[:, :, start : start + size]  # (B, K, s, X)
    step = blocks.rows.size
    run = x[sample, :, start : start + (blocks.count - 1) * step + size]  # (K, all keys, X)
    return run.unfold(1, size, step).permute(1, 0, 3, 2)  # (count, K, s, X)


def call_mask(inputs: AttentionInputs, blocks: StridedBlocks, sample: int | None) -> Tensor | None:
    """(B|1, N|1, t|1, s), or of one sample (count|1, 1, t, s)."""
    mask = additive_mask(inputs, blocks)  # (B|1, N|1, t|1, s), or (B|1, count|1, 1, t, s)
    if mask is None or sample is None:
        return mask
    return mask[sample if mask.shape[0] > 1 else 0]  # (count|1, 1, t, s)
