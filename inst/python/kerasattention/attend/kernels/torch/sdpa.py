"""torch's `scaled_dot_product_attention()`, differentiated by torch.

On a CPU it is taken where one call does all: its gradient starts sooner than one written in
Python. On other devices it is called for each block of queries.
"""

import keras
import torch
import torch.nn.functional as F

from kerasattention.attend.inputs import AttentionInputs
from kerasattention.attend.kernels.torch import calls
from kerasattention.attend.kernels.torch.calls import call_mask, columns_of, is_one_call, rows_of
from kerasattention.attend.kernels.torch.double_backward import with_second_derivative
from kerasattention.attend.tensors import group_heads, wants_float32_inputs
from kerasattention.attend.tiling import StridedBlocks, plan_kernel_calls

Tensor = torch.Tensor


def unsupported(inputs: AttentionInputs) -> str | None:
    """The argument that the function cannot honour, if there is one."""
    return "sink" if inputs.sink is not None else calls.unsupported(inputs)


def is_preferred(inputs: AttentionInputs, block_size: int | None) -> bool:
    """Off the CPU always; there, where one call without a mask does all."""
    if inputs.query.device.type != "cpu":
        return True
    if inputs.query.shape[3] == 1:  # `cpu_flash` makes one product of a key head's queries
        return False
    if inputs.bias is not None or inputs.mask.masks_tokens:
        return False
    if wants_float32_inputs(keras.backend.standardize_dtype(inputs.query.dtype)):
        return False
    return is_one_call(inputs, plan_kernel_calls(inputs, False, block_size))


def sdpa_attention(inputs: AttentionInputs, block_size: int | None = None) -> Tensor:
    """(B, K, G, T, Hv)."""
    value_size = inputs.value.shape[-1]
    inputs = calls.prepared(inputs)
    batch, kv_heads, groups, _, size = inputs.query.shape
    outputs = []
    for blocks in plan_kernel_calls(inputs, False, block_size):
        rows = blocks.count * blocks.rows.size
        if blocks.columns.size == 0:
            outputs.append(
                inputs.query.new_zeros(batch, kv_heads, groups, rows, size)
            )  # (B, K, G, t, H)
            continue
        samples = range(batch) if blocks.count > 1 else (None,)
        parts = [
            _sdpa_call(inputs, blocks, sample) for sample in samples
        ]  # (B, K, G, t, H), or (count, K, G, t, H)
        if blocks.count > 1:
            parts = [
                part.movedim(0, 2).flatten(2, 3)[None] for part in parts
            ]  # (1, K, G, count * t, H)
        outputs.append(_join(parts, 0))
    return _join(outputs, 3)[..., :value_size]  # (B, K, G, T, Hv)


def _join(parts: list[Tensor], axis: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=axis)


def _sdpa_call(inputs: AttentionInputs, blocks: StridedBlocks, sample: int | None) -> Tensor:
    query = rows_of(inputs.query, blocks, sample)  # (B, K, G, t, H)
    key, value = (columns_of(x, blocks, sample) for x in (inputs.key, inputs.value))  # (B, K, s, H)
    mask = call_mask(inputs, blocks, sample)  # (B|1, N|1, t|1, s)
    if mask is None:
        output = F.scaled_dot_product_attention(
            query.flatten(1, 2),
            key,
            value,
            is_causal=blocks.causal,
            scale=inputs.scale,
            enable_gqa=inputs.groups > 1,
        )  # (B, N, t, H)
        return with_second_derivative(output).view_as(query)  # (B, K, G, t, H)
    return _masked_call(inputs, query, key, value, mask)


def _masked_call(
    inputs: AttentionInputs, query: Tensor, key: Tensor, value: Tensor, mask: Tensor
) -> Tensor:
    """Stacks the queries that share a key: few kernels take both a mask and K < N heads."""
    mask = mask.to(query.dtype)
    if inputs.may_be_empty:
        # Fully masked rows are undefined in the kernels: all keys are made visible to them, and
        # their output is set to zero.
        visible = (mask > float("-inf")).any(-1, keepdim=True)  # (B|1, N|1, t|1, 1)
        mask = torch.where(visible, mask, 0.0)  # (B|1, N|1, t|1, s)
    output = F.scaled_dot_product_attention(
        query.flatten(2, 3), key, value, attn_mask=_stack_rows(mask, query), scale=inputs.scale
    )  # (B, K, G * t, H)
    output = with_second_derivative(output).view_as(query)  # (B, K, G, t, H)
    if not inputs.may_be_empty:
        return output
    return torch.where(group_heads(visible, inputs.kv_heads), output, 0.0)  # (B, K, G, t, H)


def _stack_rows(mask: Tensor, query: Tensor) -> Tensor:
    """(B|1, N|1, t|1, s) to what broadcasts to (B, K, G * t, s)."""
    if mask.shape[1] == mask.shape[2] == 1:
        return mask
    _, kv_heads, groups, length, _ = query.shape
    grouped = group_heads(mask, kv_heads)  # (B|1, K|1, G|1, t|1, s)
    return grouped.expand(-1, -1, groups, length, -1).flatten(2, 3)  # (B|1, K|1, G * t, s)
