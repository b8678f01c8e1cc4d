"""The fused way on torch: its own kernels, which never hold (T, S) logits.

What `scaled_dot_product_attention()` does in one call is left to it. Else, on a CPU, the kernel
behind it is called with the log of the softmax's denominator as a second result. With it a
sink is one more term, and pieces accumulate their gradients in place. It takes K < N heads, a
key mask beside the triangle and rows without keys. It is no faster in low precision, where its
gradients err further than the plain formula's: so it is given float32. On other devices the
public function is called piece by piece.
"""

import dataclasses
from collections.abc import Iterable

import keras
import torch
import torch.nn.functional as F

from kerasattention.attend.gradient import with_gradient
from kerasattention.attend.inputs import AttentionInputs, sink_logits
from kerasattention.attend.kernels.blocked import sink_gradient
from kerasattention.attend.kernels.torch.double_backward import with_second_derivative
from kerasattention.attend.tensors import group_heads, wants_float32_inputs
from kerasattention.attend.tiling import StridedBlocks, additive_mask, plan_kernel_calls

Tensor = torch.Tensor
Named = dict[str, Tensor]

_cpu_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_cpu_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def prevents(inputs: AttentionInputs) -> str | None:
    """The argument that the kernels cannot honour, if there is one."""
    if inputs.soft_cap is not None:
        return "logit_soft_cap"
    if inputs.rate > 0.0:
        return "dropout"
    if _bias_is_trained(inputs):
        return "attention_bias (one with a gradient)"
    if inputs.sink is not None and not _on_cpu(inputs):
        return "sink"
    if not inputs.query.dtype == inputs.key.dtype == inputs.value.dtype:
        return "query, key and value (of different dtypes)"
    return None


def fused_attention(inputs: AttentionInputs) -> Tensor:
    """(B, K, G, T, Hv)."""
    size = inputs.value.shape[-1]
    inputs = _with_unit_strides(_with_one_head_size(inputs))
    if _on_cpu(inputs) and not _is_public(inputs):
        return with_cpu_kernel(inputs)[..., :size]
    return with_public_function(inputs)[..., :size]


def _is_public(inputs: AttentionInputs) -> bool:
    """Whether the public function can do it in one call, torch's own gradient in it.

    Its gradient starts sooner than one of ours, which is written in Python.
    """
    if inputs.query.shape[3] == 1:  # see `_flat`
        return False
    if inputs.sink is not None or inputs.bias is not None or inputs.mask.hides_by_content:
        return False
    if wants_float32_inputs(keras.backend.standardize_dtype(inputs.query.dtype)):
        return False
    return _is_whole(inputs, plan_kernel_calls(inputs, broadcasts=False))


def _on_cpu(inputs: AttentionInputs) -> bool:
    return inputs.query.device.type == "cpu"


def _bias_is_trained(inputs: AttentionInputs) -> bool:
    if inputs.bias is None or not torch.is_grad_enabled():
        return False
    return any(x.requires_grad for x in inputs.bias.tensors().values())


def _with_one_head_size(inputs: AttentionInputs) -> AttentionInputs:
    """Fills the smaller of H and Hv up with zeros, which change neither logits nor output."""
    missing = inputs.query.shape[-1] - inputs.value.shape[-1]
    if missing > 0:
        return dataclasses.replace(inputs, value=F.pad(inputs.value, (0, missing)))
    if missing < 0:
        query, key = (F.pad(x, (0, -missing)) for x in (inputs.query, inputs.key))
        return dataclasses.replace(inputs, query=query, key=key)
    return inputs


def _with_unit_strides(inputs: AttentionInputs) -> AttentionInputs:
    """The kernels read whole heads: the last axis must be contiguous."""
    query, key, value = (
        x if x.stride(-1) == 1 else x.contiguous() for x in (inputs.query, inputs.key, inputs.value)
    )
    return dataclasses.replace(inputs, query=query, key=key, value=value)


# The kernel of the CPU ---------------------------------------------------------------


def with_cpu_kernel(inputs: AttentionInputs) -> Tensor:
    """(B, K, G, T, H), with a backward pass that walks over the same pieces."""
    inputs = inputs.widened()
    calls = plan_kernel_calls(inputs, broadcasts=True)

    def forward(named: Named) -> tuple[Tensor, Tensor]:
        return _forward_calls(inputs.with_tensors(named), calls)

    def backward(named: Named, output: Tensor, lse: Tensor, upstream: Tensor) -> Named:
        return _backward_calls(inputs.with_tensors(named), calls, output, lse, upstream)

    return with_gradient(forward, backward, inputs)


def _forward_calls(inputs: AttentionInputs, calls: list[StridedBlocks]) -> tuple[Tensor, Tensor]:
    """Output (B, K, G, T, H) and log of the softmax's denominator (B, K, G, T, 1)."""
    if _is_whole(inputs, calls):
        output, lse = _forward_part(inputs, calls[0], None)
    else:
        # Laid out as (B, T, N, H), which the output projection reads.
        batch, kv_heads, groups, length, size = inputs.query.shape
        output = inputs.query.new_zeros(batch, length, kv_heads, groups, size)
        lse = torch.zeros(batch, length, kv_heads, groups, 1, dtype=output.dtype)
        output, lse = (x.permute(0, 2, 3, 1, 4) for x in (output, lse))
        for blocks, sample in _parts(inputs, calls):
            part, part_lse = _forward_part(inputs, blocks, sample)
            _rows(output, blocks, sample).copy_(part)
            _rows(lse, blocks, sample).copy_(part_lse)
    if inputs.sink is None:
        return output, lse
    lse_with_sink = torch.logaddexp(lse, sink_logits(inputs).to(lse.dtype))
    return output.mul_(torch.exp(lse - lse_with_sink)), lse_with_sink


def _forward_part(
    inputs: AttentionInputs, blocks: StridedBlocks, sample: int | None
) -> tuple[Tensor, Tensor]:
    query = _rows(inputs.query, blocks, sample)
    output, lse = _cpu_forward(
        _flat(query),
        _columns(inputs.key, blocks, sample),
        _columns(inputs.value, blocks, sample),
        0.0,
        blocks.causal,
        attn_mask=_flat_mask(inputs, blocks, sample),
        scale=inputs.scale,
    )
    return output.view_as(query), lse.view(query.shape[:-1])[..., None]


def _backward_calls(
    inputs: AttentionInputs,
    calls: list[StridedBlocks],
    output: Tensor,
    lse: Tensor,
    upstream: Tensor,
) -> Named:
    if upstream.stride(-1) != 1:
        upstream = upstream.contiguous()
    if _is_whole(inputs, calls):
        given = (output, lse, upstream)
        query, key, value = _backward_part(inputs, calls[0], None, *given)
    else:
        query = torch.zeros_like(inputs.query)
        key, value = (torch.zeros_like(x) for x in (inputs.key, inputs.value))
        for blocks, sample in _parts(inputs, calls):
            given = (_rows(x, blocks, sample) for x in (output, lse, upstream))
            d_query, d_key, d_value = _backward_part(inputs, blocks, sample, *given)
            _rows(query, blocks, sample).copy_(d_query)
            _add_columns(key, blocks, sample, d_key)
            _add_columns(value, blocks, sample, d_value)
    gradients = {"query": query, "key": key, "value": value}
    if inputs.sink is None:
        return gradients
    delta = (upstream * output).sum(-1, keepdim=True)
    return gradients | sink_gradient(inputs, lse, delta)


def _backward_part(
    inputs: AttentionInputs,
    blocks: StridedBlocks,
    sample: int | None,
    output: Tensor,
    lse: Tensor,
    upstream: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    query = _rows(inputs.query, blocks, sample)
    flat = _flat(query)
    d_query, d_key, d_value = _cpu_backward(
        _flat(upstream),
        flat,
        _columns(inputs.key, blocks, sample),
        _columns(inputs.value, blocks, sample),
        _flat(output),
        lse.reshape(flat.shape[:-1]),
        0.0,
        blocks.causal,
        attn_mask=_flat_mask(inputs, blocks, sample),
        scale=inputs.scale,
    )
    return d_query.view_as(query), d_key, d_value


def _is_whole(inputs: AttentionInputs, calls: list[StridedBlocks]) -> bool:
    """Whether one call does it all."""
    keys = inputs.columns()
    return len(calls) == 1 and calls[0].count == 1 and calls[0].columns == keys and keys.size > 0


def _parts(
    inputs: AttentionInputs, calls: list[StridedBlocks]
) -> Iterable[tuple[StridedBlocks, int | None]]:
    """The calls of the kernel: a run takes one for each sample, a piece one for all."""
    for blocks in calls:
        if blocks.columns.size == 0:
            continue
        for sample in range(inputs.query.shape[0]) if blocks.count > 1 else (None,):
            yield blocks, sample


# Views of a part, in which the pieces of a run take the place of the batch -------------


def _rows(x: Tensor, blocks: StridedBlocks, sample: int | None) -> Tensor:
    """(B, K, G, T, X) to (B, K, G, t, X), or of one sample to (count, K, G, t, X)."""
    start, size = blocks.rows
    if sample is None:
        return x[:, :, :, start : start + size]
    run = x[sample, :, :, start : start + blocks.count * size]
    return run.unflatten(2, (blocks.count, size)).movedim(2, 0)


def _columns(x: Tensor, blocks: StridedBlocks, sample: int | None) -> Tensor:
    """(B, K, S, X) to (B, K, s, X), or of one sample to (count, K, s, X), overlapping."""
    start, size = blocks.columns
    if sample is None:
        return x[:, :, start : start + size]
    step = blocks.rows.size
    run = x[sample, :, start : start + (blocks.count - 1) * step + size]
    return run.unfold(1, size, step).permute(1, 0, 3, 2)


def _add_columns(total: Tensor, blocks: StridedBlocks, sample: int | None, part: Tensor) -> None:
    """Adds to the columns of a part; those of a run in steps that do not overlap."""
    target = _columns(total, blocks, sample)
    if sample is None:
        target += part
        return
    step = blocks.rows.size
    for start in range(0, blocks.columns.size, step):
        target[:, :, start : start + step] += part[:, :, start : start + step]


def _flat(x: Tensor) -> Tensor:
    """(B, K, G, t, X) to (B, N, t, X), and one query to (B, K, G, X).

    So the queries that share a key are rows of one product where they are the only ones.
    """
    return x.squeeze(3) if x.shape[3] == 1 else x.flatten(1, 2)


def _part_mask(inputs: AttentionInputs, blocks: StridedBlocks, sample: int | None) -> Tensor | None:
    """(B|1, N|1, t|1, s), or of one sample (count|1, 1, t, s)."""
    mask = additive_mask(inputs, blocks)
    if mask is None or sample is None:
        return mask
    return mask[sample if mask.shape[0] > 1 else 0]


def _flat_mask(inputs: AttentionInputs, blocks: StridedBlocks, sample: int | None) -> Tensor | None:
    """The mask that belongs to a `_flat` query."""
    mask = _part_mask(inputs, blocks, sample)
    if mask is None:
        return None
    if blocks.rows.size == 1 and mask.shape[1] > 1:
        return mask.view(mask.shape[0], inputs.kv_heads, inputs.groups, -1)
    return mask


# The public function -------------------------------------------------------------------


def with_public_function(inputs: AttentionInputs) -> Tensor:
    """(B, K, G, T, H), differentiated by torch."""
    batch, kv_heads, groups, _, size = inputs.query.shape
    outputs = []
    for blocks in plan_kernel_calls(inputs, broadcasts=False):
        rows = blocks.count * blocks.rows.size
        if blocks.columns.size == 0:
            outputs.append(inputs.query.new_zeros(batch, kv_heads, groups, rows, size))
            continue
        samples = range(batch) if blocks.count > 1 else (None,)
        parts = [_public_part(inputs, blocks, sample) for sample in samples]
        if blocks.count > 1:
            parts = [part.movedim(0, 2).flatten(2, 3)[None] for part in parts]
        outputs.append(_join(parts, 0))
    return _join(outputs, 3)


def _join(parts: list[Tensor], axis: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=axis)


def _public_part(inputs: AttentionInputs, blocks: StridedBlocks, sample: int | None) -> Tensor:
    query = _rows(inputs.query, blocks, sample)
    key, value = (_columns(x, blocks, sample) for x in (inputs.key, inputs.value))
    mask = _part_mask(inputs, blocks, sample)
    if mask is None:
        output = F.scaled_dot_product_attention(
            query.flatten(1, 2),
            key,
            value,
            is_causal=blocks.causal,
            scale=inputs.scale,
            enable_gqa=inputs.groups > 1,
        )
        return with_second_derivative(output).view_as(query)
    return _masked_public_part(inputs, query, key, value, mask)


def _masked_public_part(
    inputs: AttentionInputs, query: Tensor, key: Tensor, value: Tensor, mask: Tensor
) -> Tensor:
    """Stacks the queries that share a key: few kernels take both a mask and K < N heads."""
    mask = mask.to(query.dtype)
    if inputs.may_be_empty:
        # A row without keys sees all of them, and what it gets is set to zero: neither the
        # kernels nor their gradients agree on what an empty row gives.
        visible = (mask > float("-inf")).any(-1, keepdim=True)
        mask = torch.where(visible, mask, 0.0)
    output = F.scaled_dot_product_attention(
        query.flatten(2, 3), key, value, attn_mask=_stack_rows(mask, query), scale=inputs.scale
    )
    output = with_second_derivative(output).view_as(query)
    if not inputs.may_be_empty:
        return output
    return torch.where(group_heads(visible, inputs.kv_heads), output, 0.0)


def _stack_rows(mask: Tensor, query: Tensor) -> Tensor:
    """(B|1, N|1, t|1, s) to what broadcasts to (B, K, G * t, s)."""
    if mask.shape[1] == mask.shape[2] == 1:
        return mask
    _, kv_heads, groups, length, _ = query.shape
    grouped = group_heads(mask, kv_heads)  # (B|1, K|1, G|1, t|1, s)
    return grouped.expand(-1, -1, groups, length, -1).flatten(2, 3)
