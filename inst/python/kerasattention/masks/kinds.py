"""The kinds of masks: causal, window, chunks, prefix, dilated, blocks, and any function."""

import dataclasses
import uuid
import weakref
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from kerasattention import checks
from kerasattention.attend.intervals import (
    EVERYWHERE,
    FAR,
    NOWHERE,
    Intervals,
    interval,
    union,
)
from kerasattention.attend.rules import CausalRule, Positions, Reach, WindowRule
from kerasattention.attend.tensors import Columns, Span, Tensor
from kerasattention.masks.base import Mask, as_mask_object


@keras.saving.register_keras_serializable(package="kerasattention")
@dataclasses.dataclass(frozen=True, repr=False)
class CausalMask(Mask, CausalRule):
    """A query sees the keys up to its own position."""

    argument = "mask"


@keras.saving.register_keras_serializable(package="kerasattention")
@dataclasses.dataclass(frozen=True, repr=False)
class WindowMask(Mask, WindowRule):
    """A query at position q sees the keys from q - before + 1 to q + after - 1.

    Args:
        before: A positive integer: 1 for no key before the query's own position.
        after: The same for the keys after it, by default `before`.
    """

    before: int
    after: int = None  # pyright: ignore[reportAssignmentType]

    argument = "mask"

    def __post_init__(self) -> None:
        if self.after is None:
            object.__setattr__(self, "after", self.before)
        for name in ("before", "after"):
            checks.positive_integer(name, getattr(self, name))


@keras.saving.register_keras_serializable(package="kerasattention")
@dataclasses.dataclass(frozen=True, repr=False)
class ChunkMask(Mask):
    """A query sees the keys in the same chunk of positions (Llama 4).

    Args:
        size: Number of positions of a chunk.
    """

    size: int

    def __post_init__(self) -> None:
        checks.positive_integer("size", self.size)

    @property
    def reach(self) -> Reach:
        return Reach(self.size - 1, self.size - 1)

    def visible_keys(self, first: int, last: int) -> Intervals:
        size = self.size
        return interval(first // size * size, (last // size + 1) * size)

    def certain_keys(self, first: int, last: int) -> Intervals:
        if first // self.size != last // self.size:
            return NOWHERE
        return self.visible_keys(first, last)

    def block_mask(self, positions: Positions, rows: Span, columns: Columns) -> Tensor:
        queries, keys = positions.block_positions(rows, columns)
        return ops.equal(queries // self.size, keys // self.size)  # (B|1, 1, t, s)


@keras.saving.register_keras_serializable(package="kerasattention")
@dataclasses.dataclass(frozen=True, repr=False)
class PrefixMask(Mask):
    """All queries see the first `n` positions.

    `CausalMask() | PrefixMask(n)` is a prefix language model (Raffel et al. 2020);
    `CausalMask() & (WindowMask(w) | PrefixMask(n))` keeps attention sinks beside a window (Xiao et
    al. 2023, https://arxiv.org/abs/2309.17453).

    Args:
        n: Number of positions.
    """

    n: int

    is_exact = True

    def __post_init__(self) -> None:
        checks.positive_integer("n", self.n)

    @property
    def lookahead(self) -> int | None:
        return self.n

    def visible_keys(self, first: int, last: int) -> Intervals:
        return interval(-FAR, self.n)

    def certain_keys(self, first: int, last: int) -> Intervals:
        return interval(-FAR, self.n)

    def block_mask(self, positions: Positions, rows: Span, columns: Columns) -> Tensor:
        _, keys = positions.block_positions(rows, columns)
        return keys < self.n  # (B|1, 1, 1, s)


@keras.saving.register_keras_serializable(package="kerasattention")
@dataclasses.dataclass(frozen=True, repr=False)
class DilatedMask(Mask):
    """A query sees the keys at a distance that is a multiple of `step`.

    Args:
        step: A positive integer.
    """

    step: int

    is_relative = True

    def __post_init__(self) -> None:
        checks.positive_integer("step", self.step)

    def certain_keys(self, first: int, last: int) -> Intervals:
        return EVERYWHERE if self.step == 1 else NOWHERE

    def block_mask(self, positions: Positions, rows: Span, columns: Columns) -> Tensor:
        distances = ops.abs(positions.distances(rows, columns))  # (B|1, 1, t, s)
        return ops.equal(distances % self.step, 0)  # (B|1, 1, t, s)


@keras.saving.register_keras_serializable(package="kerasattention")
@dataclasses.dataclass(frozen=True, repr=False)
class BlockMask(Mask):
    """A query at position q sees a key at position k where matrix[q // size, k // size].

    Positions beyond the matrix see nothing and are not seen; lengths beyond it are an error where
    they are known.

    Args:
        matrix: Booleans, or numbers 0 and 1: a row for each block of queries, a column for each
            block of keys.
        size: Number of positions of a block.
    """

    matrix: Any
    size: int

    def __post_init__(self) -> None:
        given = np.asarray(self.matrix)
        if given.ndim != 2 or not given.size or not np.isin(given, (0, 1)).all():
            raise ValueError(
                "`matrix` must have two axes and hold booleans, or 0 and 1. "
                f"Received: matrix of shape {given.shape} and dtype {given.dtype}"
            )
        checks.positive_integer("size", self.size)
        rows = tuple(tuple(bool(x) for x in row) for row in given.tolist())
        object.__setattr__(self, "matrix", rows)

    def check_lengths(self, queries: int, keys: int) -> None:
        most = len(self.matrix) * self.size, len(self.matrix[0]) * self.size
        if queries > most[0] or keys > most[1]:
            raise ValueError(
                f"The matrix of `{self!r}` says which keys are seen for up to {most[0]} queries "
                f"and {most[1]} keys. Received: {queries} queries and {keys} keys"
            )

    def visible_keys(self, first: int, last: int) -> Intervals:
        return self._columns(np.any, first, last)

    def certain_keys(self, first: int, last: int) -> Intervals:
        if first < 0 or last >= len(self.matrix) * self.size:
            return NOWHERE
        return self._columns(np.all, first, last)

    def _columns(self, join: Callable[..., Any], first: int, last: int) -> Intervals:
        rows = self.matrix[max(first // self.size, 0) : max(last // self.size + 1, 0)]
        if not rows:
            return NOWHERE
        blocks = np.flatnonzero(join(np.array(rows), axis=0)).tolist()
        return union(tuple((i * self.size, (i + 1) * self.size) for i in blocks), NOWHERE)

    def block_mask(self, positions: Positions, rows: Span, columns: Columns) -> Tensor:
        queries, keys = positions.block_positions(rows, columns)
        height, width = len(self.matrix), len(self.matrix[0])
        # One more row and column for all positions beyond the matrix.
        table = np.zeros((height + 1, width + 1), bool)
        table[:height, :width] = self.matrix
        row, column = _block_of(queries, self.size, height), _block_of(keys, self.size, width)
        flat = row * (width + 1) + column  # (B|1, 1, t, s)
        return ops.take(ops.convert_to_tensor(table.reshape(-1)), flat, axis=0)  # (B|1, 1, t, s)

    def __repr__(self) -> str:
        shape = f"{len(self.matrix)} x {len(self.matrix[0])}"
        return f"BlockMask(<{shape} matrix>, {self.size})"


@keras.saving.register_keras_serializable(package="kerasattention")
@dataclasses.dataclass(frozen=True, repr=False)
class MaskFunction(Mask):
    """A query at position q sees a key at position k where function(q, k) is true.

    The function is called for each block of queries and keys. It is saved by name, so a model
    that is to be loaded in another session needs one decorated with
    `@keras.saving.register_keras_serializable()`.

    Args:
        function: Takes the positions of queries (..., t, 1) and of keys (..., 1, s), integer
            tensors, and returns booleans that broadcast to (..., t, s).
    """

    function: Callable[[Tensor, Tensor], Tensor]

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise ValueError(
                "`function` must be a function of the positions of queries and keys. "
                f"Received: function={self.function!r}"
            )

    def block_mask(self, positions: Positions, rows: Span, columns: Columns) -> Tensor:
        queries, keys = positions.block_positions(rows, columns)
        visible: Tensor = ops.convert_to_tensor(self.function(queries, keys))
        dtype, rank = keras.backend.standardize_dtype(visible.dtype), len(visible.shape)
        if dtype != "bool" or rank > 4:
            raise ValueError(
                f"The function of `{self!r}` must return booleans that broadcast to "
                f"(batch, 1, queries, keys). Received: {dtype} of shape {tuple(visible.shape)}"
            )
        everything = ops.equal(queries - queries, keys - keys)  # (B|1, 1, t, s)
        return ops.logical_and(everything, visible)  # (B|1, 1, t, s)

    def get_config(self) -> dict[str, Any]:
        described = keras.saving.serialize_keras_object(self.function)
        return {"function": described, "key": _key_of(self.function)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Mask":
        # Copies of a layer within the session that made it need no name.
        known = _functions.get(config.get("key"))
        return cls(as_mask_object(config["function"]) if known is None else known)

    def __repr__(self) -> str:
        return f"MaskFunction({getattr(self.function, '__name__', repr(self.function))})"


_functions: "weakref.WeakValueDictionary[Any, Any]" = weakref.WeakValueDictionary()
_keys: "weakref.WeakKeyDictionary[Any, str]" = weakref.WeakKeyDictionary()


def _key_of(function: Any) -> str | None:
    """A key under which this session finds a function; None for one that it cannot refer to."""
    try:
        key = _keys.setdefault(function, uuid.uuid4().hex)
        _functions[key] = function
    except TypeError:
        return None
    return key


def _block_of(positions: Tensor, size: int, count: int) -> Tensor:
    """The index of each position's block, `count` where there is none."""
    block = ops.cast(positions // size, "int32")  # positions may be real numbers
    return ops.where(ops.logical_and(block >= 0, block < count), block, count)
