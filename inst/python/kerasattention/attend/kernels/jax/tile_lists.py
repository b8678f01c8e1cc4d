"""Lists of the tiles that each block of queries needs, for masks that leave several spans of keys.

The lists are made before anything is computed, by the rules of the mask, and are looked up in
loops whose index is a tensor. Few keys in all become one tile of several spans.
"""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from kerasattention.attend.inputs import AttentionInputs
from kerasattention.attend.mask import AttentionMask
from kerasattention.attend.tensors import KeySpans, Span, is_static

# A tile of several spans has at most this many times the keys of another.
MOST_WIDTHS = 4
# The keys of such a tile are rounded up to a multiple of this.
STEP = 8


class ListedTile(NamedTuple):
    """A tile of some block: its keys, and which of them count (s) or None for all."""

    columns: Span | KeySpans
    counted: Any


class TileLists(NamedTuple):
    """The tiles of all blocks as arrays, a row for each block.

    Attributes:
        inner: First keys of the tiles whose keys are all visible, (blocks, most).
        edge: First key, and first and last key that count, of the others, (blocks, most, 3).
        counts: How many there are of both kinds, (blocks, 2).
        widths: Empty, or the sizes of the spans that make one tile of each block. Then `edge` has
            a row for each span.
    """

    inner: np.ndarray
    edge: np.ndarray
    counts: np.ndarray
    widths: tuple[int, ...]


def takes_lists(mask: AttentionMask) -> bool:
    """Whether the rules of positions leave other keys than one span within a distance."""
    return bool(mask.position_rules) and not mask.is_band and mask.positions_are_indices


def tile_lists(inputs: AttentionInputs, rows: int, columns: int) -> TileLists:
    """The tiles of blocks of `rows` queries; each has `columns` keys."""
    length, keys = inputs.query.shape[3], inputs.key.shape[2]
    return _tile_lists(inputs.mask.only_positions().without_tensors(), length, keys, rows, columns)


@functools.lru_cache(maxsize=64)
def _tile_lists(mask: AttentionMask, length: int, keys: int, rows: int, columns: int) -> TileLists:
    count = -(-length // rows)
    # The last block is moved back to end with the queries.
    starts = [min(index * rows, max(length - rows, 0)) for index in range(count)]
    blocks = [Span(start, min(rows, length)) for start in starts]
    spans = [mask.key_spans(block, keys) for block in blocks]
    widths = _span_widths(spans, keys)
    if sum(widths) <= MOST_WIDTHS * columns:
        return _one_tile(spans, widths, keys)
    inner: list[list[int]] = []
    edge: list[list[tuple[int, int, int]]] = []
    for block, of_block in zip(blocks, spans, strict=True):
        inner.append([])
        edge.append([])
        for span in of_block:
            for first in range(span.start, span.stop, columns):
                stop = min(first + columns, span.stop)
                whole = Span(first, columns)
                if stop - first == columns and not mask.masks_positions(block, whole):
                    inner[-1].append(first)
                else:
                    edge[-1].append((min(first, keys - columns), first, stop))
    counts = np.array([[len(x), len(y)] for x, y in zip(inner, edge, strict=True)], "int32")
    return TileLists(_filled(inner, ()), _filled(edge, (3,)), counts, ())


def _span_widths(spans: list[tuple[Span, ...]], keys: int) -> tuple[int, ...]:
    """The size of the largest span at each place, counted from the last span of a block."""
    most = max(map(len, spans))
    widths = [
        max(of_block[-1 - place].size for of_block in spans if len(of_block) > place)
        for place in range(most)
    ][::-1]
    if widths:
        missing = -sum(widths) % STEP
        widths[-1] = min(widths[-1] + missing, keys)
    return tuple(widths)


def _one_tile(spans: list[tuple[Span, ...]], widths: tuple[int, ...], keys: int) -> TileLists:
    edge = np.zeros((len(spans), len(widths), 3), "int32")
    for row, of_block in zip(edge, spans, strict=True):
        for place in range(len(of_block)):
            span, width = of_block[-1 - place], widths[-1 - place]
            row[-1 - place] = min(span.start, keys - width), span.start, span.stop
    counts = np.zeros((len(spans), 2), "int32")
    return TileLists(np.zeros((len(spans), 0), "int32"), edge, counts, widths)


def _filled(rows: list[Any], shape: tuple[int, ...]) -> np.ndarray:
    """(blocks, most, ...), zeros behind the tiles of a block."""
    found = np.zeros((len(rows), max(map(len, rows)), *shape), "int32")
    for row, given in zip(found, rows, strict=True):
        if given:
            row[: len(given)] = given
    return found


def block_index(rows: Span) -> Any:
    """Which block of queries it is; the last one was moved back."""
    if is_static(*rows):
        return -(-rows.start // rows.size)
    return (rows.start + rows.size - 1) // rows.size


def joined_tile(lists: TileLists, index: Any) -> ListedTile:
    """The one tile of a block."""
    of_block = jnp.asarray(lists.edge)[index]  # (spans, 3)
    places = jnp.arange(sum(lists.widths), dtype="int32")  # (s)
    parts, before = [], 0
    counted = jnp.zeros(places.shape, bool)  # (s)
    for place, width in enumerate(lists.widths):
        start, first, stop = of_block[place]
        parts.append(Span(start, width))
        keys = places + (start - before)  # (s)
        of_part = jnp.logical_and(keys >= first, keys < stop)  # (s)
        # Selected, not concatenated: XLA puts this into the loop of the exponential, which a
        # concatenation makes one number after the other.
        counted = jnp.where(places >= before, of_part, counted)  # (s)
        before += width
    columns = KeySpans(tuple(parts)) if len(parts) > 1 else parts[0]
    return ListedTile(columns, counted)


def edge_tile(of_tile: Any, columns: int) -> ListedTile:
    start, first, stop = of_tile
    keys = start + jnp.arange(columns, dtype="int32")  # (s)
    return ListedTile(Span(start, columns), jnp.logical_and(keys >= first, keys < stop))
