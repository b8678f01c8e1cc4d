"""Loops over tiles of queries and keys, and over samples, for the tiled kernel of JAX."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from kerasattention.attend import softmax
from kerasattention.attend.bidirectional import visible_range
from kerasattention.attend.inputs import AttentionInputs
from kerasattention.attend.kernels.jax.tile_lists import (
    block_index,
    edge_tile,
    joined_tile,
    takes_lists,
    tile_lists,
)
from kerasattention.attend.tensors import Columns, Span, slice_axis, split_columns

Tensor = jax.Array
Named = dict[str, Tensor]


class TileSize(NamedTuple):
    """Queries and keys of a tile, and whether samples are computed one by one."""

    rows: int
    columns: int
    by_sample: bool = False


class TileRange(NamedTuple):
    """The tiles of a block of queries: `stop` of them from key `first` on.

    All keys are visible by position from `inner` to `outer`; the others need their mask.
    """

    first: Any
    inner: Any
    outer: Any
    stop: Any


def _tile_range(inputs: AttentionInputs, rows: Span, columns: int) -> TileRange:
    mask, keys = inputs.mask, inputs.key.shape[2]
    if mask.query_bidirectional is not None and mask.positions_are_indices:
        first, stop = visible_range(mask, rows, keys)
        return TileRange(first, 0, 0, -(-jnp.maximum(stop - first, 0) // columns))
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
    """The keys of a tile, moved back where they would pass the end, and which of them are new."""
    wanted = tiles.first + index * columns
    span = Span(jnp.minimum(wanted, keys - columns), columns)
    return span, jnp.arange(columns) + span.start >= wanted


def over_tiles(
    inputs: AttentionInputs, rows: Span, columns: int, visit: Callable[..., Any], carry: Any
) -> Any:
    """Calls visit(inputs, columns, counted, carry) for all tiles of a block of queries.

    Where all keys are visible by position, the inputs have a mask without those rules. `counted`
    says which keys of a tile belong to it (s); None for all.
    """
    if takes_lists(inputs.mask):
        return _over_listed_tiles(inputs, rows, columns, visit, carry)
    keys = inputs.key.shape[2]
    tiles = _tile_range(inputs, rows, columns)
    inside = dataclasses.replace(inputs, mask=inputs.mask.without_position_rules())

    def edge(index: Any, carry: Any) -> Any:
        span, counted = _columns_of(tiles, index, columns, keys)
        return visit(inputs, span, counted, carry)

    def inner(index: Any, carry: Any) -> Any:
        return visit(inside, Span(tiles.first + index * columns, columns), None, carry)

    widest = widest_range(inputs, rows.size)
    if keys == columns or (widest is not None and widest <= columns):
        return edge(0, carry)
    carry = _loop(0, tiles.inner, edge, carry)
    carry = _loop(tiles.inner, tiles.outer, inner, carry)
    return _loop(tiles.outer, tiles.stop, edge, carry)


def _over_listed_tiles(
    inputs: AttentionInputs, rows: Span, columns: int, visit: Callable[..., Any], carry: Any
) -> Any:
    lists, index = tile_lists(inputs, rows.size, columns), block_index(rows)
    if lists.widths:
        tile = joined_tile(lists, index)
        return visit(inputs, tile.columns, tile.counted, carry)
    inside = dataclasses.replace(inputs, mask=inputs.mask.without_position_rules())
    inner, edge, counts = (jnp.asarray(x)[index] for x in lists[:3])

    def visit_inner(number: Any, carry: Any) -> Any:
        return visit(inside, Span(inner[number], columns), None, carry)

    def visit_edge(number: Any, carry: Any) -> Any:
        tile = edge_tile(edge[number], columns)
        return visit(inputs, tile.columns, tile.counted, carry)

    if inner.shape[0]:
        carry = _loop(0, counts[0], visit_inner, carry)
    return _loop(0, counts[1], visit_edge, carry) if edge.shape[0] else carry


def _loop(first: Any, stop: Any, step: Callable[[Any, Any], Any], carry: Any) -> Any:
    if isinstance(first, int) and isinstance(stop, int) and stop - first <= 1:
        return step(first, carry) if stop > first else carry
    return lax.fori_loop(first, stop, step, carry)


def over_blocks(length: int, rows: int, visit: Callable[..., Any], carry: Any) -> Any:
    """Calls visit(rows, wanted, carry) for all blocks of queries, the last one first.

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


def put(x: Tensor, part: Tensor, axis: int, start: Any) -> Tensor:
    return lax.dynamic_update_slice_in_dim(x, part.astype(x.dtype), start, axis)


def put_sum(x: Tensor, part: Tensor, axis: int, columns: Columns) -> Tensor:
    for span, of_span in split_columns(part, axis, columns):
        x = put(x, slice_axis(x, axis, span) + of_span, axis, span.start)
    return x


def widest_range(inputs: AttentionInputs, rows: int) -> int | None:
    """How many keys a block of queries may see, if a window limits them."""
    width = inputs.mask.reach.width
    if width is None or not inputs.mask.positions_are_indices:
        return None
    return rows - 1 + width


def mask_uncounted(logits: Tensor, counted: Any) -> Tensor:
    """Masks out the keys of a tile that do not belong to it."""
    return softmax.mask_logits(logits, counted)  # (B, K, G, t, s)


def by_sample(inputs: AttentionInputs, function: Callable[..., Any], given: Any) -> Any:
    """Calls function(inputs, given) for each sample, with a batch axis of 1."""
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

    single = jax.tree.map(lambda x: x[:, None], (split, given))  # (B, 1, ...)
    found = lax.map(one, (jnp.arange(batch, dtype=jnp.int32), *single))  # (B, 1, ...)
    return jax.tree.map(lambda x: x[:, 0], found)  # (B, ...)
