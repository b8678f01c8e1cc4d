"""Loops over tiles of queries and keys with an online softmax, on JAX outside accelerators.

XLA gives every step's largest buffer new memory, and pages of it cost more than the
arithmetic: a product of 1024 x 64 x 4096 runs at 72 GFLOP/s, one of 1024 x 64 x 512 at
250, an exponential in cache ten times as fast as one in memory. So logits exist in tiles
that stay in cache, and a row's softmax is carried from tile to tile (Milakov and
Gimelshein 2018; Dao et al. 2022). A loop is compiled once for any T.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from kerasattention.attend import softmax
from kerasattention.attend.bias import add_block_gradient
from kerasattention.attend.block import (
    WeightGradients,
    block_logits,
    combine,
    keep_factor,
    sink_gradient,
    sink_logits,
    weight_gradients,
)
from kerasattention.attend.gradient import with_gradient
from kerasattention.attend.inputs import AttentionInputs
from kerasattention.attend.tensors import (
    Span,
    matmul,
    slice_axis,
    unstack_groups,
)

Tensor = jax.Array
Named = dict[str, Tensor]

# Queries of a tile.
BLOCK_SIZE = 256
# Logits of a tile, over all heads and samples: 1 to 4 MB.
TILE_LOGITS = 2**20
COLUMNS = 256
# Tiles as wide as a window are rounded up: the fastest round of a gradient took 5 and 16% less
# with 320 columns than with 319, in two runs on a busy machine.
COLUMN_STEP = 32


class TileSize(NamedTuple):
    """Queries and keys of a tile, and whether samples are computed one by one."""

    rows: int
    columns: int
    by_sample: bool = False


class SoftmaxCarry(NamedTuple):
    """The online softmax of the tiles so far: running max and sum (..., 1), running output."""

    row_max: Tensor
    denominator: Tensor
    output: Tensor


def tiled_attention(
    inputs: AttentionInputs, block_size: int | None = None, tile: TileSize | None = None
) -> Tensor:
    """(B, K, G, T, Hv); T and S must be known."""
    # JAX traces tensors only: an offset that is one becomes positions.
    mask = inputs.mask.with_explicit_positions(inputs.rows())
    inputs = dataclasses.replace(inputs.scaled(), mask=mask)
    named = {name: jnp.asarray(x) for name, x in inputs.tensors().items()}
    return _tiled(named, inputs.without_tensors(), tile or choose_tile_size(inputs, block_size))


def choose_tile_size(
    inputs: AttentionInputs,
    block_size: int | None = None,
    columns: int = COLUMNS,
    tile_logits: int = TILE_LOGITS,
) -> TileSize:
    """Tiles of a size that stays in cache; keys as many as a window leaves, if it is narrow."""
    batch, kv_heads, groups, length, _ = inputs.query.shape
    keys = inputs.key.shape[2]
    rows = min(block_size or BLOCK_SIZE, length)
    window = inputs.mask.reach.window
    if window is not None:
        # A block of queries sees all of their windows: a quarter takes less than a whole.
        rows = min(rows, max(window // 4, 32))
    width = min(columns, keys)
    widest = _widest_range(inputs, rows)
    if widest is not None and widest <= 4 * columns:
        width = min(-(-widest // COLUMN_STEP) * COLUMN_STEP, keys)
    by_sample = batch > 1 and batch * kv_heads * groups * rows * width > tile_logits
    return TileSize(max(rows, 1), max(width, 1), by_sample and not _has_trained_bias(inputs))


def _widest_range(inputs: AttentionInputs, rows: int) -> int | None:
    """How many keys a block of queries may see, if a window limits them."""
    reach = inputs.mask.reach
    if not reach.is_limited or not inputs.mask.positions_are_indices:
        return None
    return rows + reach.before + reach.after


def _has_trained_bias(inputs: AttentionInputs) -> bool:
    return inputs.bias is not None and bool(inputs.bias.tensors())


@functools.partial(jax.jit, static_argnames=("frame", "tile"))
def _tiled(named: Named, frame: AttentionInputs, tile: TileSize) -> Tensor:
    """Compiled once for each kind of problem, also where nothing around it is compiled."""
    inputs = frame.with_tensors(named)

    def forward(named: Named) -> tuple[Tensor, Tensor]:
        return _forward(frame.with_tensors(named), tile)

    def backward(named: Named, output: Tensor, lse: Tensor, upstream: Tensor) -> Named:
        return _backward(frame.with_tensors(named), tile, output, lse, upstream)

    return with_gradient(forward, backward, inputs)


# Which tiles ---------------------------------------------------------------------------


class TileRange(NamedTuple):
    """The tiles of a block of queries: `stop` of them from key `first` on.

    Positions hide nothing from `inner` to `outer`, and the others need their mask.
    """

    first: Any
    inner: Any
    outer: Any
    stop: Any


def _tile_range(inputs: AttentionInputs, rows: Span, columns: int) -> TileRange:
    mask, keys = inputs.mask, inputs.key.shape[2]
    if not mask.position_rules:
        return TileRange(0, 0, keys // columns, -(-keys // columns))
    if not mask.positions_are_indices:
        return TileRange(0, 0, 0, -(-keys // columns))
    reach, last = mask.reach, rows.stop - 1
    first, stop, visible = 0, keys, keys
    if reach.before is not None:
        first = jnp.clip(reach.first_key(rows.start), 0, keys)
    if reach.after is not None:
        stop, visible = reach.stop_key(last), reach.stop_key(rows.start)
    stop, visible = (jnp.clip(x, first, keys) for x in (stop, visible))
    count = -(-(stop - first) // columns)
    if not mask.is_band:
        return TileRange(first, 0, 0, count)
    inner = 0
    if reach.before is not None:
        inner = jnp.clip(-(-(reach.first_key(last) - first) // columns), 0, count)
    return TileRange(first, inner, jnp.clip((visible - first) // columns, inner, count), count)


def _columns_of(tiles: TileRange, index: Any, columns: int, keys: int) -> tuple[Span, Any]:
    """The keys of a tile, moved back where they would pass the end, and the first that is new."""
    wanted = tiles.first + index * columns
    return Span(jnp.minimum(wanted, keys - columns), columns), wanted


def _over_tiles(
    inputs: AttentionInputs, rows: Span, columns: int, visit: Callable[..., Any], carry: Any
) -> Any:
    """Calls visit(problem, columns, wanted, state) for all tiles of a block of queries.

    Inside, the problem is one without rules of position.
    """
    keys = inputs.key.shape[2]
    tiles = _tile_range(inputs, rows, columns)
    inside = dataclasses.replace(inputs, mask=inputs.mask.without_position_rules())

    def edge(index: Any, carry: Any) -> Any:
        span, wanted = _columns_of(tiles, index, columns, keys)
        return visit(inputs, span, wanted, carry)

    def inner(index: Any, carry: Any) -> Any:
        return visit(inside, Span(tiles.first + index * columns, columns), None, carry)

    widest = _widest_range(inputs, rows.size)
    if keys == columns or (widest is not None and widest <= columns):
        return edge(0, carry)
    carry = _loop(0, tiles.inner, edge, carry)
    carry = _loop(tiles.inner, tiles.outer, inner, carry)
    return _loop(tiles.outer, tiles.stop, edge, carry)


def _loop(first: Any, stop: Any, step: Callable[[Any, Any], Any], carry: Any) -> Any:
    if isinstance(first, int) and isinstance(stop, int) and stop - first <= 1:
        return step(first, carry) if stop > first else carry
    return lax.fori_loop(first, stop, step, carry)


def _over_blocks(length: int, rows: int, visit: Callable[..., Any], carry: Any) -> Any:
    """Calls visit(rows, wanted, state) for all blocks of queries, the last one first.

    The last block is moved back to end with the queries. Those that it shares with its
    neighbour, before `wanted`, are then overwritten.
    """
    if length <= rows:
        return visit(Span(0, length), None, carry)
    count = -(-length // rows)

    def step(index: Any, carry: Any) -> Any:
        wanted = (count - 1 - index) * rows
        moved = Span(jnp.minimum(wanted, length - rows), rows)
        return visit(moved, None if length % rows == 0 else wanted, carry)

    return lax.fori_loop(0, count, step, carry)


def _put(x: Tensor, part: Tensor, axis: int, start: Any) -> Tensor:
    return lax.dynamic_update_slice_in_dim(x, part.astype(x.dtype), start, axis)


def _put_sum(x: Tensor, part: Tensor, axis: int, span: Span) -> Tensor:
    return _put(x, slice_axis(x, axis, span) + part, axis, span.start)


# Forward -------------------------------------------------------------------------------


def _forward(inputs: AttentionInputs, tile: TileSize) -> tuple[Tensor, Tensor]:
    """Output (B, K, G, T, Hv) and log of the softmax's denominator (B, K, G, T, 1)."""
    if tile.by_sample:
        whole = tile._replace(by_sample=False)
        return _by_sample(inputs, lambda one, _: _forward(one, whole), ())
    batch, kv_heads, groups, length, _ = inputs.query.shape
    shape = (batch, kv_heads, groups, length)

    def visit(rows: Span, wanted: Any, carry: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        parts = _forward_block(inputs, rows, tile.columns)
        if length == rows.size:
            return parts
        return tuple(_put(x, part, 3, rows.start) for x, part in zip(carry, parts, strict=True))

    widths = (inputs.value.shape[-1], 1)
    empty = tuple(jnp.zeros((*shape, width), inputs.accumulator) for width in widths)
    return _over_blocks(length, tile.rows, visit, empty)


def _forward_block(inputs: AttentionInputs, rows: Span, columns: int) -> tuple[Tensor, Tensor]:
    batch, kv_heads, groups = inputs.query.shape[:3]
    shape = (batch, kv_heads, groups, rows.size)
    carry = SoftmaxCarry(
        jnp.full((*shape, 1), -jnp.inf, inputs.accumulator),
        jnp.zeros((*shape, 1), inputs.accumulator),
        jnp.zeros((*shape, inputs.value.shape[-1]), inputs.accumulator),
    )

    def visit(
        inputs: AttentionInputs, columns: Span, wanted: Any, carry: SoftmaxCarry
    ) -> SoftmaxCarry:
        logits, _ = block_logits(inputs, rows, columns)
        logits = _mask_repeated(logits, columns, wanted)
        return _update(inputs, rows, columns, logits, carry)

    carry = _over_tiles(inputs, rows, columns, visit, carry)
    carry = _update_by_sink(inputs, carry)
    output = carry.output * softmax.reciprocal(carry.denominator, inputs.may_be_empty)
    empty = carry.denominator == 0.0
    lse = _finite(carry.row_max) + jnp.log(jnp.where(empty, 1.0, carry.denominator))
    return output, lse


def _update(
    inputs: AttentionInputs, rows: Span, columns: Span, logits: Tensor, carry: SoftmaxCarry
) -> SoftmaxCarry:
    """One more tile of keys."""
    row_max = jnp.maximum(carry.row_max, jnp.max(logits, axis=-1, keepdims=True))
    numerator = jnp.exp(logits - _finite(row_max))
    decay = jnp.exp(carry.row_max - _finite(row_max))
    denominator = carry.denominator * decay + jnp.sum(numerator, axis=-1, keepdims=True)
    keep = keep_factor(inputs, rows, columns)
    if keep is not None:
        numerator = numerator * keep
    value = slice_axis(inputs.value, 2, columns)
    output = carry.output * decay + combine(numerator, value, inputs.groups)
    return SoftmaxCarry(row_max, denominator, output)


def _update_by_sink(inputs: AttentionInputs, carry: SoftmaxCarry) -> SoftmaxCarry:
    sink = sink_logits(inputs)
    if sink is None:
        return carry
    row_max = jnp.maximum(carry.row_max, sink)
    decay = jnp.exp(carry.row_max - row_max)
    denominator = carry.denominator * decay + jnp.exp(sink - row_max)
    return SoftmaxCarry(row_max, denominator, carry.output * decay)


def _finite(row_max: Tensor) -> Tensor:
    """0 for a row that has seen no key: -inf - -inf would be nan."""
    return jnp.where(row_max == -jnp.inf, 0.0, row_max)


def _mask_repeated(logits: Tensor, columns: Span, wanted: Any) -> Tensor:
    """Hides the keys of a tile that the tile before had."""
    if wanted is None:
        return logits
    index = jnp.arange(columns.size) + columns.start
    return softmax.mask_logits(logits, index >= wanted)


# Backward ------------------------------------------------------------------------------


def _backward(
    inputs: AttentionInputs, tile: TileSize, output: Tensor, lse: Tensor, upstream: Tensor
) -> Named:
    upstream = upstream.astype(inputs.accumulator)
    # The softmax's own gradient: row sums of weight * d weight = output * d output.
    delta = jnp.sum(upstream * output, axis=-1, keepdims=True)
    found = _backward_tiles(inputs, tile, lse, delta, upstream)
    return found | sink_gradient(inputs, lse, delta)


def _backward_tiles(
    inputs: AttentionInputs, tile: TileSize, lse: Tensor, delta: Tensor, upstream: Tensor
) -> Named:
    if tile.by_sample:
        whole = tile._replace(by_sample=False)

        def one(inputs: AttentionInputs, given: tuple[Tensor, ...]) -> Named:
            return _backward_tiles(inputs, whole, *given)

        return _by_sample(inputs, one, (lse, delta, upstream))
    length = inputs.query.shape[3]
    query_t, upstream_t = (_heads_before_queries(x) for x in (inputs.query, upstream))

    def visit(rows: Span, wanted: Any, carry: GradientSums) -> GradientSums:
        part_lse, part_delta, part = (slice_axis(x, 3, rows) for x in (lse, delta, upstream))
        if wanted is not None:
            # A weight of exp(-inf) for the queries that another block has, too.
            repeated = (jnp.arange(rows.size) + rows.start < wanted)[:, None]
            part_lse = jnp.where(repeated, jnp.inf, part_lse)
        whole = carry.query
        of_rows = jnp.zeros((*whole.shape[:3], rows.size, whole.shape[4]), whole.dtype)
        carry = carry._replace(query=of_rows)
        transposed = tuple(_stack_transposed(x, rows) for x in (query_t, upstream_t))

        def add_tile(
            inputs: AttentionInputs, columns: Span, wanted: Any, carry: GradientSums
        ) -> GradientSums:
            logits, capped = block_logits(inputs, rows, columns)
            logits = _mask_repeated(logits, columns, wanted)
            found = weight_gradients(
                inputs, rows, columns, logits, capped, part_lse, part_delta, part
            )
            return _add_tile(inputs, rows, columns, found, transposed, carry)

        carry = _over_tiles(inputs, rows, tile.columns, add_tile, carry)
        if length == rows.size:
            return carry
        return carry._replace(query=_put(whole, carry.query, 3, rows.start))

    found = _over_blocks(length, tile.rows, visit, _no_gradients(inputs))
    named = {"query": found.query, "key": found.key, "value": found.value}
    named = {"query": found.query, **{n: jnp.swapaxes(named[n], 2, 3) for n in ("key", "value")}}
    return named | {f"bias/{name}": x for name, x in found.bias.items()}


class GradientSums(NamedTuple):
    """Sums so far; those of keys and values are (B, K, H, S)."""

    query: Tensor
    key: Tensor
    value: Tensor
    bias: Named


def _no_gradients(inputs: AttentionInputs) -> GradientSums:
    key, value = (jnp.swapaxes(x, 2, 3) for x in (inputs.key, inputs.value))
    bias = {} if inputs.bias is None else inputs.bias.tensors()
    shapes = (inputs.query.shape, key.shape, value.shape)
    return GradientSums(
        *(jnp.zeros(shape, inputs.accumulator) for shape in shapes),
        {name: jnp.zeros(x.shape, inputs.accumulator) for name, x in bias.items()},
    )


def _add_tile(
    inputs: AttentionInputs,
    rows: Span,
    columns: Span,
    found: WeightGradients,
    transposed: tuple[Tensor, Tensor],
    carry: GradientSums,
) -> GradientSums:
    batch = inputs.query.shape[0]
    query_t, upstream_t = transposed
    key = slice_axis(inputs.key, 2, columns)
    bias = carry.bias
    if inputs.bias is not None:
        gradient = jnp.reshape(found.logits, (batch, -1, rows.size, columns.size))
        bias = add_block_gradient(inputs.bias, bias, gradient, inputs.mask, rows, columns)
    return GradientSums(
        carry.query + unstack_groups(matmul(found.products, key), inputs.groups),
        _put_sum(carry.key, matmul(query_t, found.products), 3, columns),
        _put_sum(carry.value, matmul(upstream_t, found.weights), 3, columns),
        bias,
    )


def _heads_before_queries(x: Tensor) -> Tensor:
    """(B, K, G, T, X) to (B, K, X, G, T).

    XLA multiplies by a transposed left factor at a third of the speed (65 and 205 GFLOP/s),
    so the sums over queries are computed with these and transposed at the end.
    """
    return jnp.transpose(x, (0, 1, 4, 2, 3))


def _stack_transposed(x: Tensor, rows: Span) -> Tensor:
    """The queries of a block, (B, K, X, G * t)."""
    part = slice_axis(x, 4, rows)
    return jnp.reshape(part, (*part.shape[:3], -1))


# Samples -------------------------------------------------------------------------------


def _by_sample(inputs: AttentionInputs, function: Callable[..., Any], given: Any) -> Any:
    """Calls function(problem, given) for each sample, with a batch axis of 1."""
    batch = inputs.query.shape[0]
    named = inputs.tensors()
    split = {name: x for name, x in named.items() if inputs.has_samples(name)}
    shared = {name: x for name, x in named.items() if name not in split}

    def one(of_sample: tuple[Any, Named, Any]) -> Any:
        index, split, given = of_sample
        sample = dataclasses.replace(
            inputs.with_tensors(shared | split), first_sample=inputs.first_sample + index
        )
        return function(sample, given)

    alone = jax.tree.map(lambda x: x[:, None], (split, given))
    found = lax.map(one, (jnp.arange(batch, dtype=jnp.int32), *alone))
    return jax.tree.map(lambda x: x[:, 0], found)
