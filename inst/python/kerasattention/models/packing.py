"""Packs several short sequences into one row, which trains without padding."""

import operator
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kerasattention import checks

INT32 = np.iinfo("int32")


class PackedSequences(NamedTuple):
    """Integers of shape (B, length) each.

    Attributes:
        tokens: The tokens, 0 where a row is not full.
        segment_ids: Which sequence each token belongs to, counted from 1; 0 is padding.
        positions: The position of each token in its own sequence, from 0.
    """

    tokens: np.ndarray
    segment_ids: np.ndarray
    positions: np.ndarray


def pack_sequences(sequences: Sequence[Sequence[int]], length: int) -> PackedSequences:
    """Packs sequences into as few rows as first-fit makes of them.

    Each sequence goes whole into the first row with room for it, in the given order. Given
    `segment_ids` (and `positions`), attention trains on the rows exactly as on
    the sequences one by one (Krell et al. 2021, https://arxiv.org/abs/2107.02027).

    Args:
        sequences: Integer token ids, each of at least 1 and at most `length`.
        length: Length of a row.

    Returns:
        Tokens, segment ids and positions; sequence i of `sequences` is
        `tokens[segment_ids == i + 1]`.

    Raises:
        ValueError: An empty sequence, one that is longer than `length`, or ids that
            are not integers.
    """
    checks.positive_integer("length", length)
    arrays = [_as_tokens(index, tokens, length) for index, tokens in enumerate(sequences)]
    if not arrays:
        raise ValueError(f"`sequences` must hold at least one. Received: {sequences!r}")
    places = _first_fit([len(tokens) for tokens in arrays], length)
    rows = 1 + max(row for row, _ in places)
    _check_size(length, sum(len(tokens) for tokens in arrays))
    packed = PackedSequences(*(np.zeros((rows, length), dtype="int32") for _ in range(3)))
    for index, (tokens, (row, start)) in enumerate(zip(arrays, places, strict=True)):
        columns = slice(start, start + len(tokens))
        packed.tokens[row, columns] = tokens
        packed.segment_ids[row, columns] = index + 1
        packed.positions[row, columns] = np.arange(len(tokens))
    return packed


# A row this long costs 200 MB in all.
MOST_PADDED = 2**24


def _check_size(length: int, count: int) -> None:
    """Refuses rows that would be nearly all padding, before they are allocated."""
    if length > max(MOST_PADDED, 16 * count):
        raise ValueError(
            f"`length` must be at most {max(MOST_PADDED, 16 * count)} for {count} tokens: rows "
            f"of it would be padding and fill the memory. Received: length={length}"
        )


def _as_tokens(index: int, tokens: Sequence[int], length: int) -> np.ndarray:
    array = np.asarray(tokens)
    where = f"sequence {index + 1}"
    if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "iu":
        raise ValueError(
            "Each of `sequences` must be a sequence of at least one integer. Received: "
            f"{where} of shape {array.shape} and dtype {array.dtype}"
        )
    if array.min() < INT32.min or array.max() > INT32.max:
        raise ValueError(
            "Each of `sequences` must hold integers that 32 bits can hold. Received: "
            f"{where} with values from {array.min()} to {array.max()}"
        )
    if array.size > length:
        raise ValueError(
            f"Each of `sequences` must fit into a row of `length` {length}. Received: {where} "
            f"with {array.size} tokens. Cut it, split it, or raise `length`."
        )
    return array


def _first_fit(sizes: list[int], length: int) -> list[tuple[int, int]]:
    """Row and start of each size."""
    free = np.full(len(sizes), length)
    places = []
    for size in map(operator.index, sizes):
        row = int(np.argmax(free >= size))
        places.append((row, length - int(free[row])))
        free[row] -= size
    return places
