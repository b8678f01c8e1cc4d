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
from kerasattention.attend.inputs import Problem, sink_logits
from kerasattention.attend.kernels.blocked import sink_gradient
from kerasattention.attend.kernels.torch.double_backward import with_second_derivative
from kerasattention.attend.tensors import group_heads, wants_float32_inputs
from kerasattention.attend.tiling import Piece, piece_mask, plan_pieces

Tensor = torch.Tensor
Named = dict[str, Tensor]

_cpu_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_cpu_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def prevents(problem: Problem) -> str | None:
    """The argument that the kernels cannot honour, if there is one."""
    if problem.soft_cap is not None:
        return "logit_soft_cap"
    if problem.rate > 0.0:
        return "dropout"
    if _bias_is_trained(problem):
        return "attention_bias (one with a gradient)"
    if problem.sink is not None and not _on_cpu(problem):
        return "sink"
    if not problem.query.dtype == problem.key.dtype == problem.value.dtype:
        return "query, key and value (of different dtypes)"
    return None


def fused_attention(problem: Problem) -> Tensor:
    """(B, K, G, T, Hv)."""
    size = problem.value.shape[-1]
    problem = _with_unit_strides(_with_one_head_size(problem))
    if _on_cpu(problem) and not _is_public(problem):
        return with_cpu_kernel(problem)[..., :size]
    return with_public_function(problem)[..., :size]


def _is_public(problem: Problem) -> bool:
    """Whether the public function can do it in one call, torch's own gradient in it.

    Its gradient starts sooner than one of ours, which is written in Python.
    """
    if problem.query.shape[3] == 1:  # see `_flat`
        return False
    if problem.sink is not None or problem.bias is not None or problem.visibility.hides_by_content:
        return False
    if wants_float32_inputs(keras.backend.standardize_dtype(problem.query.dtype)):
        return False
    return _is_whole(problem, plan_pieces(problem, broadcasts=False))


def _on_cpu(problem: Problem) -> bool:
    return problem.query.device.type == "cpu"


def _bias_is_trained(problem: Problem) -> bool:
    if problem.bias is None or not torch.is_grad_enabled():
        return False
    return any(x.requires_grad for x in problem.bias.tensors().values())


def _with_one_head_size(problem: Problem) -> Problem:
    """Fills the smaller of H and Hv up with zeros, which change neither logits nor output."""
    missing = problem.query.shape[-1] - problem.value.shape[-1]
    if missing > 0:
        return dataclasses.replace(problem, value=F.pad(problem.value, (0, missing)))
    if missing < 0:
        query, key = (F.pad(x, (0, -missing)) for x in (problem.query, problem.key))
        return dataclasses.replace(problem, query=query, key=key)
    return problem


def _with_unit_strides(problem: Problem) -> Problem:
    """The kernels read whole heads: the last axis must be contiguous."""
    query, key, value = (
        x if x.stride(-1) == 1 else x.contiguous()
        for x in (problem.query, problem.key, problem.value)
    )
    return dataclasses.replace(problem, query=query, key=key, value=value)


# The kernel of the CPU ---------------------------------------------------------------


def with_cpu_kernel(problem: Problem) -> Tensor:
    """(B, K, G, T, H), with a backward pass that walks over the same pieces."""
    problem = problem.widened()
    pieces = plan_pieces(problem, broadcasts=True)

    def forward(named: Named) -> tuple[Tensor, Tensor]:
        return _forward_pieces(problem.with_tensors(named), pieces)

    def backward(named: Named, output: Tensor, log_sum: Tensor, upstream: Tensor) -> Named:
        return _backward_pieces(problem.with_tensors(named), pieces, output, log_sum, upstream)

    return with_gradient(forward, backward, problem)


def _forward_pieces(problem: Problem, pieces: list[Piece]) -> tuple[Tensor, Tensor]:
    """Output (B, K, G, T, H) and log of the softmax's denominator (B, K, G, T, 1)."""
    if _is_whole(problem, pieces):
        output, log_sum = _forward_part(problem, pieces[0], None)
    else:
        # Laid out as (B, T, N, H), which the output projection reads.
        batch, kv_heads, groups, length, size = problem.query.shape
        output = problem.query.new_zeros(batch, length, kv_heads, groups, size)
        log_sum = torch.zeros(batch, length, kv_heads, groups, 1, dtype=output.dtype)
        output, log_sum = (x.permute(0, 2, 3, 1, 4) for x in (output, log_sum))
        for piece, sample in _parts(problem, pieces):
            part, part_log_sum = _forward_part(problem, piece, sample)
            _rows(output, piece, sample).copy_(part)
            _rows(log_sum, piece, sample).copy_(part_log_sum)
    if problem.sink is None:
        return output, log_sum
    with_sink = torch.logaddexp(log_sum, sink_logits(problem).to(log_sum.dtype))
    return output.mul_(torch.exp(log_sum - with_sink)), with_sink


def _forward_part(problem: Problem, piece: Piece, sample: int | None) -> tuple[Tensor, Tensor]:
    query = _rows(problem.query, piece, sample)
    output, log_sum = _cpu_forward(
        _flat(query),
        _columns(problem.key, piece, sample),
        _columns(problem.value, piece, sample),
        0.0,
        piece.triangle,
        attn_mask=_flat_mask(problem, piece, sample),
        scale=problem.scale,
    )
    return output.view_as(query), log_sum.view(query.shape[:-1])[..., None]


def _backward_pieces(
    problem: Problem, pieces: list[Piece], output: Tensor, log_sum: Tensor, upstream: Tensor
) -> Named:
    if upstream.stride(-1) != 1:
        upstream = upstream.contiguous()
    if _is_whole(problem, pieces):
        given = (output, log_sum, upstream)
        query, key, value = _backward_part(problem, pieces[0], None, *given)
    else:
        query = torch.zeros_like(problem.query)
        key, value = (torch.zeros_like(x) for x in (problem.key, problem.value))
        for piece, sample in _parts(problem, pieces):
            given = (_rows(x, piece, sample) for x in (output, log_sum, upstream))
            d_query, d_key, d_value = _backward_part(problem, piece, sample, *given)
            _rows(query, piece, sample).copy_(d_query)
            _add_columns(key, piece, sample, d_key)
            _add_columns(value, piece, sample, d_value)
    gradients = {"query": query, "key": key, "value": value}
    if problem.sink is None:
        return gradients
    row_sums = (upstream * output).sum(-1, keepdim=True)
    return gradients | sink_gradient(problem, log_sum, row_sums)


def _backward_part(
    problem: Problem,
    piece: Piece,
    sample: int | None,
    output: Tensor,
    log_sum: Tensor,
    upstream: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    query = _rows(problem.query, piece, sample)
    flat = _flat(query)
    d_query, d_key, d_value = _cpu_backward(
        _flat(upstream),
        flat,
        _columns(problem.key, piece, sample),
        _columns(problem.value, piece, sample),
        _flat(output),
        log_sum.reshape(flat.shape[:-1]),
        0.0,
        piece.triangle,
        attn_mask=_flat_mask(problem, piece, sample),
        scale=problem.scale,
    )
    return d_query.view_as(query), d_key, d_value


def _is_whole(problem: Problem, pieces: list[Piece]) -> bool:
    """Whether one call does it all."""
    keys = problem.columns()
    return len(pieces) == 1 and pieces[0].count == 1 and pieces[0].columns == keys and keys.size > 0


def _parts(problem: Problem, pieces: list[Piece]) -> Iterable[tuple[Piece, int | None]]:
    """The calls of the kernel: a run takes one for each sample, a piece one for all."""
    for piece in pieces:
        if piece.columns.size == 0:
            continue
        for sample in range(problem.query.shape[0]) if piece.count > 1 else (None,):
            yield piece, sample


# Views of a part, in which the pieces of a run take the place of the batch -------------


def _rows(x: Tensor, piece: Piece, sample: int | None) -> Tensor:
    """(B, K, G, T, X) to (B, K, G, t, X), or of one sample to (count, K, G, t, X)."""
    start, size = piece.rows
    if sample is None:
        return x[:, :, :, start : start + size]
    run = x[sample, :, :, start : start + piece.count * size]
    return run.unflatten(2, (piece.count, size)).movedim(2, 0)


def _columns(x: Tensor, piece: Piece, sample: int | None) -> Tensor:
    """(B, K, S, X) to (B, K, s, X), or of one sample to (count, K, s, X), overlapping."""
    start, size = piece.columns
    if sample is None:
        return x[:, :, start : start + size]
    step = piece.rows.size
    run = x[sample, :, start : start + (piece.count - 1) * step + size]
    return run.unfold(1, size, step).permute(1, 0, 3, 2)


def _add_columns(total: Tensor, piece: Piece, sample: int | None, part: Tensor) -> None:
    """Adds to the columns of a part; those of a run in steps that do not overlap."""
    target = _columns(total, piece, sample)
    if sample is None:
        target += part
        return
    step = piece.rows.size
    for start in range(0, piece.columns.size, step):
        target[:, :, start : start + step] += part[:, :, start : start + step]


def _flat(x: Tensor) -> Tensor:
    """(B, K, G, t, X) to (B, N, t, X), and one query to (B, K, G, X).

    So the queries that share a key are rows of one product where they are the only ones.
    """
    return x.squeeze(3) if x.shape[3] == 1 else x.flatten(1, 2)


def _part_mask(problem: Problem, piece: Piece, sample: int | None) -> Tensor | None:
    """(B|1, N|1, t|1, s), or of one sample (count|1, 1, t, s)."""
    mask = piece_mask(problem, piece)
    if mask is None or sample is None:
        return mask
    return mask[sample if mask.shape[0] > 1 else 0]


def _flat_mask(problem: Problem, piece: Piece, sample: int | None) -> Tensor | None:
    """The mask that belongs to a `_flat` query."""
    mask = _part_mask(problem, piece, sample)
    if mask is None:
        return None
    if piece.rows.size == 1 and mask.shape[1] > 1:
        return mask.view(mask.shape[0], problem.kv_heads, problem.groups, -1)
    return mask


# The public function -------------------------------------------------------------------


def with_public_function(problem: Problem) -> Tensor:
    """(B, K, G, T, H), differentiated by torch."""
    batch, kv_heads, groups, _, size = problem.query.shape
    outputs = []
    for piece in plan_pieces(problem, broadcasts=False):
        rows = piece.count * piece.rows.size
        if piece.columns.size == 0:
            outputs.append(problem.query.new_zeros(batch, kv_heads, groups, rows, size))
            continue
        samples = range(batch) if piece.count > 1 else (None,)
        parts = [_public_part(problem, piece, sample) for sample in samples]
        if piece.count > 1:
            parts = [part.movedim(0, 2).flatten(2, 3)[None] for part in parts]
        outputs.append(_join(parts, 0))
    return _join(outputs, 3)


def _join(parts: list[Tensor], axis: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=axis)


def _public_part(problem: Problem, piece: Piece, sample: int | None) -> Tensor:
    query = _rows(problem.query, piece, sample)
    key, value = (_columns(x, piece, sample) for x in (problem.key, problem.value))
    mask = _part_mask(problem, piece, sample)
    if mask is None:
        output = F.scaled_dot_product_attention(
            query.flatten(1, 2),
            key,
            value,
            is_causal=piece.triangle,
            scale=problem.scale,
            enable_gqa=problem.groups > 1,
        )
        return with_second_derivative(output).view_as(query)
    return _masked_public_part(problem, query, key, value, mask)


def _masked_public_part(
    problem: Problem, query: Tensor, key: Tensor, value: Tensor, mask: Tensor
) -> Tensor:
    """Stacks the queries that share a key: few kernels take both a mask and K < N heads."""
    mask = mask.to(query.dtype)
    if problem.may_be_empty:
        # A row without keys sees all of them, and what it gets is set to zero: neither the
        # kernels nor their gradients agree on what an empty row gives.
        seen = (mask > float("-inf")).any(-1, keepdim=True)
        mask = torch.where(seen, mask, 0.0)
    output = F.scaled_dot_product_attention(
        query.flatten(2, 3), key, value, attn_mask=_stack_rows(mask, query), scale=problem.scale
    )
    output = with_second_derivative(output).view_as(query)
    if not problem.may_be_empty:
        return output
    return torch.where(group_heads(seen, problem.kv_heads), output, 0.0)


def _stack_rows(mask: Tensor, query: Tensor) -> Tensor:
    """(B|1, N|1, t|1, s) to what broadcasts to (B, K, G * t, s)."""
    if mask.shape[1] == mask.shape[2] == 1:
        return mask
    _, kv_heads, groups, length, _ = query.shape
    grouped = group_heads(mask, kv_heads)  # (B|1, K|1, G|1, t|1, s)
    return grouped.expand(-1, -1, groups, length, -1).flatten(2, 3)
