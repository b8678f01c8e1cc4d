"""The blocked way on JAX outside accelerators: loops over tiles of queries and keys.

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
from kerasattention.attend.gradient import with_gradient
from kerasattention.attend.inputs import (
    Problem,
    block_logits,
    combine,
    keep_factor,
    sink_logits,
)
from kerasattention.attend.kernels.blocked import WeightGradients, sink_gradient, weight_gradients
from kerasattention.attend.tensors import (
    Span,
    matmul,
    slice_axis,
    unstack_groups,
)

Tensor = jax.Array
Named = dict[str, Tensor]

# Logits of a tile, over all heads and samples: 1 to 4 MB.
TILE_LOGITS = 2**20
COLUMNS = 256
# Tiles as wide as a window are rounded up: the fastest round of a gradient took 5 and 16% less
# with 320 columns than with 319, in two runs on a busy machine.
COLUMN_STEP = 32


class Tile(NamedTuple):
    """Queries and keys of a tile, and whether samples are computed one by one."""

    rows: int
    columns: int
    by_sample: bool = False


class State(NamedTuple):
    """What a row's softmax has seen so far; the last axis of the first two is 1."""

    peak: Tensor
    denominator: Tensor
    output: Tensor


def tiled_attention(problem: Problem, size: int) -> Tensor:
    """(B, K, G, T, Hv); T and S must be known."""
    problem = _with_positions(problem.scaled())
    named = {name: jnp.asarray(x) for name, x in problem.tensors().items()}
    return _tiled(named, problem.without_tensors(), choose_tile(problem, size))


def choose_tile(problem: Problem, size: int) -> Tile:
    """Tiles of a size that stays in cache; keys as many as a window leaves, if it is narrow."""
    batch, kv_heads, groups, length, _ = problem.query.shape
    keys = problem.key.shape[2]
    rows = min(size, length)
    if problem.visibility.window is not None:
        # A block of queries sees all of their windows: a quarter takes less than a whole.
        rows = min(rows, max(problem.visibility.window // 4, 32))
    columns = min(COLUMNS, keys)
    widest = _widest_range(problem, rows)
    if widest is not None and widest <= 4 * COLUMNS:
        columns = min(-(-widest // COLUMN_STEP) * COLUMN_STEP, keys)
    by_sample = batch > 1 and batch * kv_heads * groups * rows * columns > TILE_LOGITS
    return Tile(max(rows, 1), max(columns, 1), by_sample and not _has_trained_bias(problem))


def _widest_range(problem: Problem, rows: int) -> int | None:
    """How many keys a block of queries may see, if a window limits them."""
    visibility = problem.visibility
    if visibility.window is None or not visibility.positions_are_indices:
        return None
    return rows + (1 if visibility.causal else 2) * (visibility.window - 1)


def _has_trained_bias(problem: Problem) -> bool:
    return problem.bias is not None and bool(problem.bias.tensors())


@functools.partial(jax.jit, static_argnames=("frame", "tile"))
def _tiled(named: Named, frame: Problem, tile: Tile) -> Tensor:
    """Compiled once for each kind of problem, also where nothing around it is compiled."""
    problem = frame.with_tensors(named)

    def forward(named: Named) -> tuple[Tensor, Tensor]:
        return _forward(frame.with_tensors(named), tile)

    def backward(named: Named, output: Tensor, log_sum: Tensor, upstream: Tensor) -> Named:
        return _backward(frame.with_tensors(named), tile, output, log_sum, upstream)

    return with_gradient(forward, backward, problem)


def _with_positions(problem: Problem) -> Problem:
    """An offset that is a tensor becomes the positions that it stands for."""
    visibility = problem.visibility
    if isinstance(visibility.offset, int):
        return problem
    positions = visibility.positions_of_queries(problem.rows())
    visibility = dataclasses.replace(visibility, query_positions=positions, offset=0)
    return dataclasses.replace(problem, visibility=visibility)


# Which tiles ---------------------------------------------------------------------------


class Tiles(NamedTuple):
    """The tiles of a block of queries: `stop` of them from key `first` on.

    Positions hide nothing from `inner` to `outer`, and the others need their mask.
    """

    first: Any
    inner: Any
    outer: Any
    stop: Any


def _tiles_of(problem: Problem, rows: Span, columns: int) -> Tiles:
    visibility, keys = problem.visibility, problem.key.shape[2]
    if not visibility.by_position:
        return Tiles(0, 0, keys // columns, -(-keys // columns))
    if not visibility.positions_are_indices:
        return Tiles(0, 0, 0, -(-keys // columns))
    low, high = rows.start + visibility.offset, rows.stop - 1 + visibility.offset
    window = visibility.window
    first, stop, visible = 0, keys, keys
    if window is not None:
        first = jnp.clip(low - window + 1, 0, keys)
        stop, visible = high + window, low + window
    if visibility.causal:
        stop, visible = high + 1, low + 1
    stop, visible = (jnp.clip(x, first, keys) for x in (stop, visible))
    count = -(-(stop - first) // columns)
    inner = 0
    if window is not None:
        inner = jnp.clip(-(-(high - window + 1 - first) // columns), 0, count)
    return Tiles(first, inner, jnp.clip((visible - first) // columns, inner, count), count)


def _columns_of(tiles: Tiles, index: Any, columns: int, keys: int) -> tuple[Span, Any]:
    """The keys of a tile, moved back where they would pass the end, and the first that is new."""
    wanted = tiles.first + index * columns
    return Span(jnp.minimum(wanted, keys - columns), columns), wanted


def _over_tiles(
    problem: Problem, rows: Span, columns: int, visit: Callable[..., Any], state: Any
) -> Any:
    """Calls visit(problem, columns, wanted, state) for all tiles of a block of queries.

    Inside, the problem is one without rules of position.
    """
    keys = problem.key.shape[2]
    tiles = _tiles_of(problem, rows, columns)
    unruled = dataclasses.replace(problem.visibility, causal=False, window=None)
    inside = dataclasses.replace(problem, visibility=unruled)

    def edge(index: Any, state: Any) -> Any:
        span, wanted = _columns_of(tiles, index, columns, keys)
        return visit(problem, span, wanted, state)

    def inner(index: Any, state: Any) -> Any:
        return visit(inside, Span(tiles.first + index * columns, columns), None, state)

    widest = _widest_range(problem, rows.size)
    if keys == columns or (widest is not None and widest <= columns):
        return edge(0, state)
    state = _loop(0, tiles.inner, edge, state)
    state = _loop(tiles.inner, tiles.outer, inner, state)
    return _loop(tiles.outer, tiles.stop, edge, state)


def _loop(first: Any, stop: Any, step: Callable[[Any, Any], Any], state: Any) -> Any:
    if isinstance(first, int) and isinstance(stop, int) and stop - first <= 1:
        return step(first, state) if stop > first else state
    return lax.fori_loop(first, stop, step, state)


def _over_blocks(length: int, rows: int, visit: Callable[..., Any], state: Any) -> Any:
    """Calls visit(rows, wanted, state) for all blocks of queries, the last one first.

    The last block is moved back to end with the queries. Those that it shares with its
    neighbour, before `wanted`, are then overwritten.
    """
    if length <= rows:
        return visit(Span(0, length), None, state)
    count = -(-length // rows)

    def step(index: Any, state: Any) -> Any:
        wanted = (count - 1 - index) * rows
        moved = Span(jnp.minimum(wanted, length - rows), rows)
        return visit(moved, None if length % rows == 0 else wanted, state)

    return lax.fori_loop(0, count, step, state)


def _put(x: Tensor, part: Tensor, axis: int, start: Any) -> Tensor:
    return lax.dynamic_update_slice_in_dim(x, part.astype(x.dtype), start, axis)


def _put_sum(x: Tensor, part: Tensor, axis: int, span: Span) -> Tensor:
    return _put(x, slice_axis(x, axis, span) + part, axis, span.start)


# Forward -------------------------------------------------------------------------------


def _forward(problem: Problem, tile: Tile) -> tuple[Tensor, Tensor]:
    """Output (B, K, G, T, Hv) and log of the softmax's denominator (B, K, G, T, 1)."""
    if tile.by_sample:
        whole = tile._replace(by_sample=False)
        return _by_sample(problem, lambda one, _: _forward(one, whole), ())
    batch, kv_heads, groups, length, _ = problem.query.shape
    shape = (batch, kv_heads, groups, length)

    def visit(rows: Span, wanted: Any, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        parts = _forward_block(problem, rows, tile.columns)
        if length == rows.size:
            return parts
        return tuple(_put(x, part, 3, rows.start) for x, part in zip(state, parts, strict=True))

    widths = (problem.value.shape[-1], 1)
    empty = tuple(jnp.zeros((*shape, width), problem.accumulator) for width in widths)
    return _over_blocks(length, tile.rows, visit, empty)


def _forward_block(problem: Problem, rows: Span, columns: int) -> tuple[Tensor, Tensor]:
    batch, kv_heads, groups = problem.query.shape[:3]
    shape = (batch, kv_heads, groups, rows.size)
    state = State(
        jnp.full((*shape, 1), -jnp.inf, problem.accumulator),
        jnp.zeros((*shape, 1), problem.accumulator),
        jnp.zeros((*shape, problem.value.shape[-1]), problem.accumulator),
    )

    def visit(problem: Problem, columns: Span, wanted: Any, state: State) -> State:
        logits, _ = block_logits(problem, rows, columns)
        logits = _hide_repeated(logits, columns, wanted)
        return _see(problem, rows, columns, logits, state)

    state = _over_tiles(problem, rows, columns, visit, state)
    state = _see_sink(problem, state)
    output = state.output * softmax.reciprocal(state.denominator, problem.may_be_empty)
    empty = state.denominator == 0.0
    log_sum = _finite(state.peak) + jnp.log(jnp.where(empty, 1.0, state.denominator))
    return output, log_sum


def _see(problem: Problem, rows: Span, columns: Span, logits: Tensor, state: State) -> State:
    """One more tile of keys."""
    peak = jnp.maximum(state.peak, jnp.max(logits, axis=-1, keepdims=True))
    numerator = jnp.exp(logits - _finite(peak))
    decay = jnp.exp(state.peak - _finite(peak))
    denominator = state.denominator * decay + jnp.sum(numerator, axis=-1, keepdims=True)
    keep = keep_factor(problem, rows, columns)
    if keep is not None:
        numerator = numerator * keep
    value = slice_axis(problem.value, 2, columns)
    output = state.output * decay + combine(numerator, value, problem.groups)
    return State(peak, denominator, output)


def _see_sink(problem: Problem, state: State) -> State:
    sink = sink_logits(problem)
    if sink is None:
        return state
    peak = jnp.maximum(state.peak, sink)
    decay = jnp.exp(state.peak - peak)
    denominator = state.denominator * decay + jnp.exp(sink - peak)
    return State(peak, denominator, state.output * decay)


def _finite(peak: Tensor) -> Tensor:
    """0 for a row that has seen no key: -inf - -inf would be nan."""
    return jnp.where(peak == -jnp.inf, 0.0, peak)


def _hide_repeated(logits: Tensor, columns: Span, wanted: Any) -> Tensor:
    """Hides the keys of a tile that the tile before had."""
    if wanted is None:
        return logits
    index = jnp.arange(columns.size) + columns.start
    return softmax.hide(logits, index >= wanted)


# Backward ------------------------------------------------------------------------------


def _backward(
    problem: Problem, tile: Tile, output: Tensor, log_sum: Tensor, upstream: Tensor
) -> Named:
    upstream = upstream.astype(problem.accumulator)
    # The softmax's own gradient: row sums of weight * d weight = output * d output.
    row_sums = jnp.sum(upstream * output, axis=-1, keepdims=True)
    found = _backward_tiles(problem, tile, log_sum, row_sums, upstream)
    return found | sink_gradient(problem, log_sum, row_sums)


def _backward_tiles(
    problem: Problem, tile: Tile, log_sum: Tensor, row_sums: Tensor, upstream: Tensor
) -> Named:
    if tile.by_sample:
        whole = tile._replace(by_sample=False)

        def one(problem: Problem, given: tuple[Tensor, ...]) -> Named:
            return _backward_tiles(problem, whole, *given)

        return _by_sample(problem, one, (log_sum, row_sums, upstream))
    length = problem.query.shape[3]
    query_t, upstream_t = (_heads_before_queries(x) for x in (problem.query, upstream))

    def visit(rows: Span, wanted: Any, state: Gradients) -> Gradients:
        part_log_sum, part_row_sums, part = (
            slice_axis(x, 3, rows) for x in (log_sum, row_sums, upstream)
        )
        if wanted is not None:
            # A weight of exp(-inf) for the queries that another block has, too.
            repeated = (jnp.arange(rows.size) + rows.start < wanted)[:, None]
            part_log_sum = jnp.where(repeated, jnp.inf, part_log_sum)
        whole = state.query
        of_rows = jnp.zeros((*whole.shape[:3], rows.size, whole.shape[4]), whole.dtype)
        state = state._replace(query=of_rows)
        transposed = tuple(_stack_transposed(x, rows) for x in (query_t, upstream_t))

        def see(problem: Problem, columns: Span, wanted: Any, state: Gradients) -> Gradients:
            logits, capped = block_logits(problem, rows, columns)
            logits = _hide_repeated(logits, columns, wanted)
            found = weight_gradients(
                problem, rows, columns, logits, capped, part_log_sum, part_row_sums, part
            )
            return _add_tile(problem, rows, columns, found, transposed, state)

        state = _over_tiles(problem, rows, tile.columns, see, state)
        if length == rows.size:
            return state
        return state._replace(query=_put(whole, state.query, 3, rows.start))

    found = _over_blocks(length, tile.rows, visit, _no_gradients(problem))
    named = {"query": found.query, "key": found.key, "value": found.value}
    named = {"query": found.query, **{n: jnp.swapaxes(named[n], 2, 3) for n in ("key", "value")}}
    return named | {f"bias/{name}": x for name, x in found.bias.items()}


class Gradients(NamedTuple):
    """Sums so far; those of keys and values are (B, K, H, S)."""

    query: Tensor
    key: Tensor
    value: Tensor
    bias: Named


def _no_gradients(problem: Problem) -> Gradients:
    key, value = (jnp.swapaxes(x, 2, 3) for x in (problem.key, problem.value))
    bias = {} if problem.bias is None else problem.bias.tensors()
    shapes = (problem.query.shape, key.shape, value.shape)
    return Gradients(
        *(jnp.zeros(shape, problem.accumulator) for shape in shapes),
        {name: jnp.zeros(x.shape, problem.accumulator) for name, x in bias.items()},
    )


def _add_tile(
    problem: Problem,
    rows: Span,
    columns: Span,
    found: WeightGradients,
    transposed: tuple[Tensor, Tensor],
    state: Gradients,
) -> Gradients:
    batch = problem.query.shape[0]
    query_t, upstream_t = transposed
    key = slice_axis(problem.key, 2, columns)
    bias = state.bias
    if problem.bias is not None:
        gradient = jnp.reshape(found.logits, (batch, -1, rows.size, columns.size))
        bias = add_block_gradient(problem.bias, bias, gradient, problem.visibility, rows, columns)
    return Gradients(
        state.query + unstack_groups(matmul(found.products, key), problem.groups),
        _put_sum(state.key, matmul(query_t, found.products), 3, columns),
        _put_sum(state.value, matmul(upstream_t, found.weights), 3, columns),
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


def _by_sample(problem: Problem, function: Callable[..., Any], given: Any) -> Any:
    """Calls function(problem, given) for each sample, with a batch axis of 1."""
    batch = problem.query.shape[0]
    named = problem.tensors()
    split = {name: x for name, x in named.items() if _has_samples(name, x, batch)}
    shared = {name: x for name, x in named.items() if name not in split}

    def one(inputs: tuple[Any, Named, Any]) -> Any:
        index, split, given = inputs
        sample = dataclasses.replace(
            problem.with_tensors(shared | split), first_sample=problem.first_sample + index
        )
        return function(sample, given)

    alone = jax.tree.map(lambda x: x[:, None], (split, given))
    found = lax.map(one, (jnp.arange(batch, dtype=jnp.int32), *alone))
    return jax.tree.map(lambda x: x[:, 0], found)


def _has_samples(name: str, x: Tensor, batch: int) -> bool:
    """Whether the first axis is B: positions may be (T), masks (1, N, T, S)."""
    rank_of_all = {"visibility/query_positions": 1, "visibility/key_positions": 1}
    if name in ("sink", "seed") or x.ndim == rank_of_all.get(name):
        return False
    return x.shape[0] == batch
