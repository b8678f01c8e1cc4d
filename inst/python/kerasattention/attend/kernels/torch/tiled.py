"""Tiles of queries and keys that stay in cache, changed in place, with an online softmax.

A row's softmax is carried from tile to tile (Milakov and Gimelshein 2018; Dao et al. 2022).
torch gives every result new memory and each operation another pass over it, so a tile's
logits become its weights where they lie.
"""

import dataclasses

import torch

from kerasattention.attend import softmax
from kerasattention.attend.bias import add_block_gradient
from kerasattention.attend.block import keep_factor, sink_gradient, sink_logits
from kerasattention.attend.gradient import with_gradient
from kerasattention.attend.inputs import AttentionInputs
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

# Queries of a tile.
BLOCK_SIZE = 256
# Logits of a tile, over all heads and samples: 4 MB.
TILE_LOGITS = 2**20
# Fewer keys make products too small.
LEAST_COLUMNS = 128

_MASKED_OUT = float("-inf")


@dataclasses.dataclass(frozen=True)
class QueryBlock:
    """A block of queries and the tiles of keys that it sees, in order."""

    rows: Span
    columns: tuple[Span, ...]


def tiled_attention(
    inputs: AttentionInputs, block_size: int | None = None, tile_keys: int | None = None
) -> Tensor:
    """(B, K, G, T, Hv), in tiles of `block_size` queries and `tile_keys` keys."""
    inputs = inputs.scaled()
    plan = plan_query_blocks(inputs, block_size or BLOCK_SIZE, tile_keys)

    def forward(given: AttentionInputs) -> tuple[Tensor, Tensor]:
        parts = [_forward_block(given, block) for block in plan]
        outputs, lses = zip(*parts, strict=True)
        return torch.cat(outputs, dim=3), torch.cat(
            lses, dim=3
        )  # (B, K, G, T, Hv), (B, K, G, T, 1)

    def backward(given: AttentionInputs, output: Tensor, lse: Tensor, upstream: Tensor) -> Named:
        return _backward(given, plan, output, lse, upstream)

    return with_gradient(forward, backward, inputs)


def plan_query_blocks(
    inputs: AttentionInputs, size: int, tile_keys: int | None = None
) -> list[QueryBlock]:
    """Blocks of `size` queries with their tiles: by default as many keys as stay in cache."""
    batch, kv_heads, groups = inputs.query.shape[:3]
    fitting = TILE_LOGITS // max(batch * kv_heads * groups * size, 1)
    width = tile_keys or max(fitting, LEAST_COLUMNS)
    length, keys = inputs.query.shape[3], inputs.key.shape[2]
    blocks = []
    for start in range(0, length, size):
        rows = Span(start, min(size, length - start))
        spans = inputs.mask.key_spans(rows, keys)
        tiles = [tile for span in spans for tile in _tiles(span, width)]
        blocks.append(QueryBlock(rows, tuple(tiles)))
    return blocks


def _tiles(span: Span, width: int) -> list[Span]:
    return [
        Span(start, min(width, span.stop - start)) for start in range(span.start, span.stop, width)
    ]


# A tile -------------------------------------------------------------------------------


def _logits(
    inputs: AttentionInputs, query: Tensor, rows: Span, columns: Span
) -> tuple[Tensor, Tensor | None]:
    """Logits (B, K, G, t, s) of stacked queries, and tanh of those before, for a cap's gradient."""
    key = slice_axis(inputs.key, 2, columns)  # (B, K, s, H)
    logits = unstack_groups(matmul(query, key.mT), inputs.groups)  # (B, K, G, t, s)
    capped = None
    if inputs.soft_cap is not None:
        capped = logits.mul_(1.0 / inputs.soft_cap).tanh_()  # (B, K, G, t, s)
        logits = capped * inputs.soft_cap  # (B, K, G, t, s)
    if inputs.bias is not None:
        bias = inputs.bias.block(inputs.mask, rows, columns).to(
            logits.dtype
        )  # (B|1, N|1, t|1, s|1)
        logits.add_(group_heads(bias, inputs.kv_heads))  # (B, K, G, t, s)
    mask = inputs.mask.block_mask(rows, columns)  # (B|1, N|1, t|1, s|1)
    if mask is not None:
        # Zeros and minus infinities of the mask's own, smaller shape.
        addend = torch.zeros(
            mask.shape, dtype=logits.dtype, device=mask.device
        )  # (B|1, N|1, t|1, s|1)
        addend.masked_fill_(~mask, _MASKED_OUT)
        logits.add_(group_heads(addend, inputs.kv_heads))  # (B, K, G, t, s)
    return logits, capped


def _stacked(x: Tensor, rows: Span) -> Tensor:
    return stack_groups(slice_axis(x, 3, rows))  # (B, K, G * t, X)


# Forward ------------------------------------------------------------------------------


def _forward_block(inputs: AttentionInputs, block: QueryBlock) -> tuple[Tensor, Tensor]:
    """Output (B, K, G, t, Hv) and lse (B, K, G, t, 1)."""
    rows, query = block.rows, _stacked(inputs.query, block.rows)  # (B, K, G * t, H)
    shape = (*inputs.query.shape[:3], rows.size)
    new = {"dtype": getattr(torch, inputs.accumulator), "device": query.device}
    row_max = torch.full((*shape, 1), _MASKED_OUT, **new)  # (B, K, G, t, 1)
    denominator = torch.zeros((*shape, 1), **new)  # (B, K, G, t, 1)
    output = torch.zeros((*shape, inputs.value.shape[-1]), **new)  # (B, K, G, t, Hv)
    for columns in block.columns:
        logits, _ = _logits(inputs, query, rows, columns)  # (B, K, G, t, s)
        last, row_max = (
            row_max,
            torch.maximum(row_max, logits.amax(-1, keepdim=True)),
        )  # (B, K, G, t, 1)
        weights = logits.sub_(_finite(row_max)).exp_()  # (B, K, G, t, s)
        decay = torch.exp(last - _finite(row_max))  # (B, K, G, t, 1)
        denominator.mul_(decay).add_(weights.sum(-1, keepdim=True))  # (B, K, G, t, 1)
        keep = keep_factor(inputs, rows, columns)  # (B, K, G, t, s)
        if keep is not None:
            weights.mul_(keep)  # (B, K, G, t, s)
        value = slice_axis(inputs.value, 2, columns)  # (B, K, s, Hv)
        part = matmul(stack_groups(weights.to(value.dtype)), value)  # (B, K, G * t, Hv)
        output.mul_(decay).add_(unstack_groups(part, inputs.groups))  # (B, K, G, t, Hv)
    sink = sink_logits(inputs)  # (1, K, G, 1, 1)
    if sink is not None:
        last, row_max = row_max, torch.maximum(row_max, sink)  # (B, K, G, t, 1)
        decay = torch.exp(last - row_max)  # (B, K, G, t, 1)
        denominator.mul_(decay).add_(torch.exp(sink - row_max))  # (B, K, G, t, 1)
        output.mul_(decay)
    output.mul_(softmax.reciprocal(denominator, inputs.may_be_empty))  # (B, K, G, t, Hv)
    return output, _finite(row_max) + torch.log(torch.where(denominator == 0.0, 1.0, denominator))


def _finite(row_max: Tensor) -> Tensor:
    """0 for a row without keys so far: -inf - -inf is NaN."""
    return torch.where(row_max == _MASKED_OUT, 0.0, row_max)


# Backward -----------------------------------------------------------------------------


def _backward(
    inputs: AttentionInputs, plan: list[QueryBlock], output: Tensor, lse: Tensor, upstream: Tensor
) -> Named:
    accumulator = getattr(torch, inputs.accumulator)
    upstream = upstream.to(accumulator)  # (B, K, G, T, Hv)
    # The softmax's own gradient: delta, the row sums of dO * O.
    delta = (upstream * output).sum(-1, keepdim=True)  # (B, K, G, T, 1)
    tensors = inputs.tensors()
    totals = {
        name: torch.zeros_like(tensors[name], dtype=accumulator)
        for name in inputs.differentiable()
        if name != "sink"
    }
    for block in plan:
        _add_block_gradients(inputs, block, totals, lse, delta, upstream)
    return totals | sink_gradient(inputs, lse, delta)


def _add_block_gradients(
    inputs: AttentionInputs,
    block: QueryBlock,
    totals: Named,
    lse: Tensor,
    delta: Tensor,
    upstream: Tensor,
) -> None:
    """Adds the gradients of a block of queries to all of them."""
    rows, query = block.rows, _stacked(inputs.query, block.rows)  # (B, K, G * t, H)
    lse, delta = (slice_axis(x, 3, rows) for x in (lse, delta))  # (B, K, G, t, 1)
    given = _stacked(upstream, rows).to(inputs.value.dtype)  # (B, K, G * t, Hv)
    d_query = torch.zeros_like(query, dtype=totals["query"].dtype)  # (B, K, G * t, H)
    for columns in block.columns:
        key, value = (
            slice_axis(x, 2, columns) for x in (inputs.key, inputs.value)
        )  # (B, K, s, H), (B, K, s, Hv)
        logits, capped = _logits(inputs, query, rows, columns)  # (B, K, G, t, s)
        weights = logits.sub_(lse).exp_()  # (B, K, G, t, s)
        d_logits = unstack_groups(matmul(given, value.mT), inputs.groups)  # (B, K, G, t, s)
        dropped = weights
        keep = keep_factor(inputs, rows, columns)  # (B, K, G, t, s)
        if keep is not None:
            dropped = weights * keep  # (B, K, G, t, s)
            d_logits.mul_(keep)  # (B, K, G, t, s)
        d_value = matmul(stack_groups(dropped.to(value.dtype)).mT, given)  # (B, K, s, Hv)
        _columns(totals["value"], columns).add_(d_value)
        d_logits.sub_(delta).mul_(weights)  # (B, K, G, t, s)
        _add_bias(inputs, totals, d_logits, rows, columns)
        if capped is not None:
            d_logits.mul_(capped.square_().neg_().add_(1.0))  # (B, K, G, t, s)
        d_products = stack_groups(d_logits.to(key.dtype))  # (B, K, G * t, s)
        _columns(totals["key"], columns).add_(matmul(d_products.mT, query))
        d_query.add_(matmul(d_products, key))  # (B, K, G * t, H)
    totals["query"][:, :, :, rows.start : rows.stop] = unstack_groups(d_query, inputs.groups)


def _columns(x: Tensor, columns: Span) -> Tensor:
    return x[:, :, columns.start : columns.stop]  # (B, K, s, X)


def _add_bias(
    inputs: AttentionInputs, totals: Named, d_logits: Tensor, rows: Span, columns: Span
) -> None:
    bias = inputs.bias
    if bias is None or not bias.differentiable():
        return
    of_bias = {name: totals[f"bias/{name}"] for name in bias.differentiable()}
    gradient = d_logits.flatten(1, 2)  # (B, N, t, s)
    added = add_block_gradient(bias, of_bias, gradient, inputs.mask, rows, columns)
    totals.update({f"bias/{name}": total for name, total in added.items()})
