"""The blocked way on torch: tiles of queries and keys that stay in cache, changed in place.

A row's softmax is carried from tile to tile (Milakov and Gimelshein 2018; Dao et al. 2022).
torch gives every result new memory and each operation another pass over it, so a tile's
logits become its weights where they lie.
"""

import dataclasses

import torch

from kerasattention.attend import softmax
from kerasattention.attend.bias import add_block_gradient
from kerasattention.attend.gradient import with_gradient
from kerasattention.attend.inputs import Problem, keep_factor, sink_logits
from kerasattention.attend.kernels.blocked import plan_blocks, sink_gradient
from kerasattention.attend.tensors import (
    Span,
    group_heads,
    matmul,
    slice_axis,
    stack_groups,
    unstack_groups,
)

Tensor = torch.Tensor
Named = dict[str, Tensor]

# Logits of a tile, over all heads and samples: 4 MB.
TILE_LOGITS = 2**20
# Fewer keys make products too small.
LEAST_COLUMNS = 128

_HIDDEN = float("-inf")


@dataclasses.dataclass(frozen=True)
class Tiles:
    """A block of queries and the runs of keys that it sees, one after the other."""

    rows: Span
    columns: tuple[Span, ...]


def tiled_attention(problem: Problem, size: int) -> Tensor:
    """(B, K, G, T, Hv)."""
    problem = problem.scaled()
    plan = plan_tiles(problem, size)

    def forward(named: Named) -> tuple[Tensor, Tensor]:
        given = problem.with_tensors(named)
        parts = [_forward_rows(given, tiles) for tiles in plan]
        return tuple(torch.cat(part, dim=3) for part in zip(*parts, strict=True))

    def backward(named: Named, output: Tensor, log_sum: Tensor, upstream: Tensor) -> Named:
        return _backward(problem.with_tensors(named), plan, output, log_sum, upstream)

    return with_gradient(forward, backward, problem)


def plan_tiles(problem: Problem, size: int) -> list[Tiles]:
    """Tiles of `size` queries, and of so many keys that a tile stays in cache."""
    batch, kv_heads, groups = problem.query.shape[:3]
    width = max(TILE_LOGITS // max(batch * kv_heads * groups * size, 1), LEAST_COLUMNS)
    return [
        Tiles(
            block.rows,
            tuple(
                Span(start, min(width, block.columns.stop - start))
                for start in range(block.columns.start, block.columns.stop, width)
            ),
        )
        for block in plan_blocks(problem, size)
    ]


# A tile -------------------------------------------------------------------------------


def _logits(problem: Problem, query: Tensor, rows: Span, columns: Span) -> tuple[Tensor, Tensor]:
    """Logits (B, K, G, t, s) of stacked queries, and tanh of those before, for a cap's gradient."""
    key = slice_axis(problem.key, 2, columns)
    logits = unstack_groups(matmul(query, key.mT), problem.groups)
    capped = None
    if problem.soft_cap is not None:
        capped = logits.mul_(1.0 / problem.soft_cap).tanh_()
        logits = capped * problem.soft_cap
    if problem.bias is not None:
        bias = problem.bias.block(problem.visibility, rows, columns).to(logits.dtype)
        logits.add_(group_heads(bias, problem.kv_heads))
    mask = problem.visibility.block(rows, columns)
    if mask is not None:
        # Zeros and minus infinities of the mask's own, smaller shape.
        hidden = torch.zeros(mask.shape, dtype=logits.dtype, device=mask.device)
        hidden.masked_fill_(~mask, _HIDDEN)
        logits.add_(group_heads(hidden, problem.kv_heads))
    return logits, capped


def _stacked(x: Tensor, rows: Span) -> Tensor:
    return stack_groups(slice_axis(x, 3, rows))


# Forward ------------------------------------------------------------------------------


def _forward_rows(problem: Problem, tiles: Tiles) -> tuple[Tensor, Tensor]:
    """Output (B, K, G, t, Hv) and log of the softmax's denominator (B, K, G, t, 1)."""
    rows, query = tiles.rows, _stacked(problem.query, tiles.rows)
    shape = (*problem.query.shape[:3], rows.size)
    new = {"dtype": getattr(torch, problem.accumulator), "device": query.device}
    peak = torch.full((*shape, 1), _HIDDEN, **new)
    denominator = torch.zeros((*shape, 1), **new)
    output = torch.zeros((*shape, problem.value.shape[-1]), **new)
    for columns in tiles.columns:
        logits, _ = _logits(problem, query, rows, columns)
        last, peak = peak, torch.maximum(peak, logits.amax(-1, keepdim=True))
        weights = logits.sub_(_finite(peak)).exp_()
        decay = torch.exp(last - _finite(peak))
        denominator.mul_(decay).add_(weights.sum(-1, keepdim=True))
        keep = keep_factor(problem, rows, columns)
        if keep is not None:
            weights.mul_(keep)
        value = slice_axis(problem.value, 2, columns)
        part = matmul(stack_groups(weights.to(value.dtype)), value)
        output.mul_(decay).add_(unstack_groups(part, problem.groups))
    sink = sink_logits(problem)
    if sink is not None:
        last, peak = peak, torch.maximum(peak, sink)
        decay = torch.exp(last - peak)
        denominator.mul_(decay).add_(torch.exp(sink - peak))
        output.mul_(decay)
    output.mul_(softmax.reciprocal(denominator, problem.may_be_empty))
    return output, _finite(peak) + torch.log(torch.where(denominator == 0.0, 1.0, denominator))


def _finite(peak: Tensor) -> Tensor:
    """0 for a row that has seen no key: -inf - -inf would be nan."""
    return torch.where(peak == _HIDDEN, 0.0, peak)


# Backward -----------------------------------------------------------------------------


def _backward(
    problem: Problem, plan: list[Tiles], output: Tensor, log_sum: Tensor, upstream: Tensor
) -> Named:
    accumulator = getattr(torch, problem.accumulator)
    upstream = upstream.to(accumulator)
    # The softmax's own gradient: row sums of weight * d weight = output * d output.
    row_sums = (upstream * output).sum(-1, keepdim=True)
    tensors = problem.tensors()
    totals = {
        name: torch.zeros_like(tensors[name], dtype=accumulator)
        for name in problem.differentiable()
        if name != "sink"
    }
    for tiles in plan:
        _add_rows(problem, tiles, totals, log_sum, row_sums, upstream)
    return totals | sink_gradient(problem, log_sum, row_sums)


def _add_rows(
    problem: Problem,
    tiles: Tiles,
    totals: Named,
    log_sum: Tensor,
    row_sums: Tensor,
    upstream: Tensor,
) -> None:
    """Adds the gradients of a block of queries to all of them."""
    rows, query = tiles.rows, _stacked(problem.query, tiles.rows)
    log_sum, row_sums = (slice_axis(x, 3, rows) for x in (log_sum, row_sums))
    given = _stacked(upstream, rows).to(problem.value.dtype)
    d_query = torch.zeros_like(query, dtype=totals["query"].dtype)
    for columns in tiles.columns:
        key, value = (slice_axis(x, 2, columns) for x in (problem.key, problem.value))
        logits, capped = _logits(problem, query, rows, columns)
        weights = logits.sub_(log_sum).exp_()
        d_logits = unstack_groups(matmul(given, value.mT), problem.groups)
        dropped = weights
        keep = keep_factor(problem, rows, columns)
        if keep is not None:
            dropped = weights * keep
            d_logits.mul_(keep)
        d_value = matmul(stack_groups(dropped.to(value.dtype)).mT, given)
        _columns(totals["value"], columns).add_(d_value)
        d_logits.sub_(row_sums).mul_(weights)
        _add_bias(problem, totals, d_logits, rows, columns)
        if capped is not None:
            d_logits.mul_(capped.square_().neg_().add_(1.0))
        d_products = stack_groups(d_logits.to(key.dtype))
        _columns(totals["key"], columns).add_(matmul(d_products.mT, query))
        d_query.add_(matmul(d_products, key))
    totals["query"][:, :, :, rows.start : rows.stop] = unstack_groups(d_query, problem.groups)


def _columns(x: Tensor, columns: Span) -> Tensor:
    return x[:, :, columns.start : columns.stop]


def _add_bias(problem: Problem, totals: Named, d_logits: Tensor, rows: Span, columns: Span) -> None:
    bias = problem.bias
    if bias is None or not bias.tensors():
        return
    of_bias = {name: totals[f"bias/{name}"] for name in bias.tensors()}
    gradient = d_logits.flatten(1, 2)  # (B, N, t, s)
    added = add_block_gradient(bias, of_bias, gradient, problem.visibility, rows, columns)
    totals.update({f"bias/{name}": total for name, total in added.items()})
