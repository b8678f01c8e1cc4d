"""torch's flash kernel for CPUs, called with the log-sum-exp as a second result.

With the log-sum-exp a sink is one more term, and blocks accumulate their gradients in place. The
kernel takes K < N heads, a key mask beside its causal rule, and rows without keys. It is no faster
in low precision, where its gradients are less accurate than those of the plain formula, so its
inputs are cast to float32.
"""

from collections.abc import Iterable

import torch

from kerasattention.attend.block import sink_gradient, sink_logits
from kerasattention.attend.gradient import with_gradient
from kerasattention.attend.inputs import AttentionInputs
from kerasattention.attend.kernels.torch.calls import (
    call_mask,
    columns_of,
    is_one_call,
    prepared,
    rows_of,
)
from kerasattention.attend.tensors import KeySpans
from kerasattention.attend.tiling import StridedBlocks, plan_kernel_calls

Tensor = torch.Tensor
Named = dict[str, Tensor]

# The lse of a query without keys.
_EMPTY = float("-inf")

_cpu_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_cpu_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def cpu_flash_attention(inputs: AttentionInputs, block_size: int | None = None) -> Tensor:
    """(B, K, G, T, Hv), with a backward pass over the same calls."""
    value_size = inputs.value.shape[-1]
    inputs = prepared(inputs).widened()
    calls = plan_kernel_calls(inputs, True, block_size, merges=True)

    def forward(given: AttentionInputs) -> tuple[Tensor, Tensor]:
        return _forward_calls(given, calls)

    def backward(given: AttentionInputs, output: Tensor, lse: Tensor, upstream: Tensor) -> Named:
        return _backward_calls(given, calls, output, lse, upstream)

    return with_gradient(forward, backward, inputs)[..., :value_size]


def _forward_calls(inputs: AttentionInputs, calls: list[StridedBlocks]) -> tuple[Tensor, Tensor]:
    """Output (B, K, G, T, H) and lse (B, K, G, T, 1)."""
    if is_one_call(inputs, calls):
        output, lse = _forward_part(inputs, calls[0], None)  # (B, K, G, T, H), (B, K, G, T, 1)
    else:
        # In the memory order of (B, T, N, H), which the output projection reads.
        batch, kv_heads, groups, length, size = inputs.query.shape
        output = inputs.query.new_zeros(batch, length, kv_heads, groups, size)  # (B, T, K, G, H)
        lse = torch.zeros(batch, length, kv_heads, groups, 1, dtype=output.dtype)  # (B, T, K, G, 1)
        output, lse = (
            x.permute(0, 2, 3, 1, 4) for x in (output, lse)
        )  # (B, K, G, T, H), (B, K, G, T, 1)
        merges = any(blocks.merged for blocks in calls)
        for blocks, sample in _parts(inputs, calls):
            part, part_lse = _forward_part(
                inputs, blocks, sample, merges
            )  # (B, K, G, t, H), (B, K, G, t, 1)
            of_rows, of_lse = (rows_of(x, blocks, sample) for x in (output, lse))
            if blocks.merged:
                _merge(of_rows, of_lse, part, part_lse)
            else:
                of_rows.copy_(part)
                of_lse.copy_(part_lse)
        if merges:
            lse.masked_fill_(lse == _EMPTY, 0.0)
    if inputs.sink is None:
        return output, lse
    lse_with_sink = torch.logaddexp(lse, sink_logits(inputs).to(lse.dtype))  # (B, K, G, T, 1)
    return output.mul_(torch.exp(lse - lse_with_sink)), lse_with_sink


def _merge(output: Tensor, lse: Tensor, part: Tensor, part_lse: Tensor) -> None:
    """Merges the result for other keys into an output (B, K, G, t, H) and lse (B, K, G, t, 1)."""
    both = torch.logaddexp(lse, part_lse)  # (B, K, G, t, 1)
    finite = torch.where(both == _EMPTY, 0.0, both)  # (B, K, G, t, 1)
    output.mul_(torch.exp(lse - finite)).add_(part.mul_(torch.exp(part_lse - finite)))
    lse.copy_(both)


def _forward_part(
    inputs: AttentionInputs, blocks: StridedBlocks, sample: int | None, marks_empty: bool = False
) -> tuple[Tensor, Tensor]:
    """With `marks_empty` the lse of a query without keys is minus infinity, else undefined."""
    query = rows_of(inputs.query, blocks, sample)  # (B, K, G, t, H)
    mask = _flat_mask(inputs, blocks, sample)  # (B|1, N|1, t|1, s)
    output, lse = _cpu_forward(
        _flat(query),
        columns_of(inputs.key, blocks, sample),
        columns_of(inputs.value, blocks, sample),
        0.0,
        blocks.causal,
        attn_mask=mask,
        scale=inputs.scale,
    )  # (B, N, t, H) or (B, K, G, H), and the lse without H
    if marks_empty and mask is not None and inputs.mask.masks_tokens:
        lse = torch.where(mask.amax(-1) == _EMPTY, _EMPTY, lse)  # as it was
    return output.view_as(query), lse.view(query.shape[:-1])[
        ..., None
    ]  # (B, K, G, t, H), (B, K, G, t, 1)


def _backward_calls(
    inputs: AttentionInputs,
    calls: list[StridedBlocks],
    output: Tensor,
    lse: Tensor,
    upstream: Tensor,
) -> Named:
    if upstream.stride(-1) != 1:
        upstream = upstream.contiguous()
    if is_one_call(inputs, calls):
        given = (output, lse, upstream)
        query, key, value = _backward_part(
            inputs, calls[0], None, *given
        )  # (B, K, G, T, H), (B, K, S, H), (B, K, S, H)
    else:
        query = torch.zeros_like(inputs.query)  # (B, K, G, T, H)
        key, value = (torch.zeros_like(x) for x in (inputs.key, inputs.value))  # (B, K, S, H)
        for blocks, sample in _parts(inputs, calls):
            given = (rows_of(x, blocks, sample) for x in (output, lse, upstream))
            d_query, d_key, d_value = _backward_part(
                inputs, blocks, sample, *given
            )  # (B, K, G, t, H), (B, K, s, H), (B, K, s, H)
            of_rows = rows_of(query, blocks, sample)  # (B, K, G, t, H)
            of_rows.add_(d_query) if blocks.merged else of_rows.copy_(d_query)
            _add_columns(key, blocks, sample, d_key)
            _add_columns(value, blocks, sample, d_value)
    gradients = {"query": query, "key": key, "value": value}
    if inputs.sink is None:
        return gradients
    delta = (upstream * output).sum(-1, keepdim=True)  # (B, K, G, T, 1)
    return gradients | sink_gradient(inputs, lse, delta)


def _backward_part(
    inputs: AttentionInputs,
    blocks: StridedBlocks,
    sample: int | None,
    output: Tensor,
    lse: Tensor,
    upstream: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    query = rows_of(inputs.query, blocks, sample)  # (B, K, G, t, H)
    flat = _flat(query)  # (B, N, t, H) or (B, K, G, H)
    d_query, d_key, d_value = _cpu_backward(
        _flat(upstream),
        flat,
        columns_of(inputs.key, blocks, sample),
        columns_of(inputs.value, blocks, sample),
        _flat(output),
        lse.reshape(flat.shape[:-1]),
        0.0,
        blocks.causal,
        attn_mask=_flat_mask(inputs, blocks, sample),
        scale=inputs.scale,
    )  # as `flat`, (B, K, s, H), (B, K, s, H)
    return d_query.view_as(query), d_key, d_value  # (B, K, G, t, H), (B, K, s, H), (B, K, s, H)


def _parts(
    inputs: AttentionInputs, calls: list[StridedBlocks]
) -> Iterable[tuple[StridedBlocks, int | None]]:
    """The calls of the kernel: strided blocks take one for each sample, a block one for all."""
    for blocks in calls:
        if blocks.columns.size == 0:
            continue
        for sample in range(inputs.query.shape[0]) if blocks.count > 1 else (None,):
            yield blocks, sample


def _add_columns(total: Tensor, blocks: StridedBlocks, sample: int | None, part: Tensor) -> None:
    """Adds to the columns of a part; those of strided blocks in steps that do not overlap."""
    if isinstance(blocks.columns, KeySpans):
        parts = part.split([span.size for span in blocks.columns.spans], dim=2)
        for of_span, given in zip(blocks.spans, parts, strict=True):
            _add_columns(total, of_span, sample, given)
        return
    if sample is not None and blocks.fixed:
        start, size = blocks.columns
        total[sample, :, start : start + size] += part.sum(0)  # (K, s, H)
        return
    target = columns_of(total, blocks, sample)  # (B, K, s, H), or (count, K, s, H)
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


def _flat_mask(inputs: AttentionInputs, blocks: StridedBlocks, sample: int | None) -> Tensor | None:
    """The mask that belongs to a `_flat` query."""
    mask = call_mask(inputs, blocks, sample)  # (B|1, N|1, t|1, s)
    if mask is None:
        return None
    if blocks.rows.size == 1 and mask.shape[1] > 1:
        return mask.view(mask.shape[0], inputs.kv_heads, inputs.groups, mask.shape[3])
    return mask
