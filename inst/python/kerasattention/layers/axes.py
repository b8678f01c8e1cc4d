"""Attention over any axes: bringing (B, ..., heads, size) to (B, T, heads, size) and back."""

import dataclasses
import math
import string
from typing import Any

import keras
from keras import ops

from kerasattention.attend.tensors import Tensor, is_static


def projection_equation(rank: int) -> str:
    """Einsum of an input of some rank with a kernel (D, heads, size), e.g. "abc,cde->abde"."""
    letters = string.ascii_lowercase
    free, bound, made = letters[: rank - 1], letters[rank - 1], letters[rank : rank + 2]
    return f"{free}{bound},{bound}{made}->{free}{made}"


def output_equation(rank: int, output_axes: int) -> tuple[str, str]:
    """Einsum of heads with a kernel (heads, size, *outputs), and the outputs' letters."""
    letters = string.ascii_lowercase
    free, bound = letters[: rank - 1], letters[rank - 1 : rank + 1]
    made = letters[rank + 1 : rank + 1 + output_axes]
    return f"{free}{bound},{bound}{made}->{free}{made}", made


def resolve_axes(axes: tuple[int, ...] | None, rank: int) -> tuple[int, ...]:
    """Axes counted from 0, all between the batch axis and the feature axis by default."""
    if axes is None:
        return tuple(range(1, rank - 1))
    resolved = tuple(axis if axis >= 0 else rank + axis for axis in axes)
    for given, axis in zip(axes, resolved, strict=True):
        if not 1 <= axis <= rank - 2:
            raise ValueError(
                f"`attention_axes` must lie between 1 and {rank - 2} for inputs with "
                f"{rank} axes: 0 is the batch axis and {rank - 1} the features. "
                f"Received: attention_axes={tuple(axes)} (axis {given})"
            )
    if len(set(resolved)) < len(resolved):
        raise ValueError(f"`attention_axes` names an axis twice: {tuple(axes)}")
    return resolved


@dataclasses.dataclass(frozen=True)
class AxisFold:
    """Folds the attention axes into one length and all other axes into the batch.

    Attributes:
        axes: The attention axes of the input.
        rank: Number of axes of the input, (B, ..., D).
    """

    axes: tuple[int, ...]
    rank: int

    @property
    def is_trivial(self) -> bool:
        return self.axes == (1,) and self.rank == 3

    @property
    def batch_axes(self) -> tuple[int, ...]:
        return tuple(axis for axis in range(self.rank - 1) if axis not in self.axes)

    @property
    def order(self) -> tuple[int, ...]:
        return self.batch_axes + self.axes

    def lengths(self, x: Tensor) -> tuple[Any, ...]:
        """Sizes of the attention axes of (B, ..., anything)."""
        shape = ops.shape(x)
        return tuple(shape[axis] for axis in self.axes)

    def length(self, x: Tensor) -> Any:
        """T of (B, ..., anything)."""
        return _product(self.lengths(x))

    def batches(self, x: Tensor) -> tuple[Any, ...]:
        """Sizes of the batch axes."""
        shape = ops.shape(x)
        return tuple(shape[axis] for axis in self.batch_axes)

    def fold(self, x: Tensor) -> Tensor:
        """(B, ..., X, Y) to (B', T, X, Y)."""
        if self.is_trivial:
            return x
        rest = tuple(range(self.rank - 1, len(x.shape)))
        sizes = (_product(self.batches(x)), _product(self.lengths(x)))
        tail = ops.shape(x)[self.rank - 1 :]
        return ops.reshape(ops.transpose(x, self.order + rest), (*sizes, *tail))  # (B', T, X, Y)

    def unfold(self, x: Tensor, like: Tensor) -> Tensor:
        """(B', T, N, Hv) back to (B, ..., N, Hv), the axes those of `like`."""
        if self.is_trivial:
            return x
        shape = (*self.batches(like), *self.lengths(like), *ops.shape(x)[2:])
        inverse = tuple(self.order.index(axis) for axis in range(self.rank - 1))
        rest = tuple(range(self.rank - 1, self.rank + 1))
        return ops.transpose(ops.reshape(x, shape), inverse + rest)  # (B, ..., N, Hv)

    def unfold_scores(self, scores: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """(B', N, T, S) to (B, ..., N, query axes, key axes), as Keras returns them."""
        if self.is_trivial:
            return scores
        shape = (
            *self.batches(query),
            scores.shape[1],
            *self.lengths(query),
            *self.lengths(key),
        )
        return ops.reshape(scores, shape)  # (B, ..., N, query axes, key axes)

    def axes_of_padding(self, rank: int, attached: bool = False) -> tuple[int, ...]:
        """The input's axes that a mask of some rank has.

        A mask (B, L) is of the one attended axis, as in Keras. One that Keras attached to
        its tensor marks the leading axes.
        """
        if rank == 2 and len(self.axes) == 1 and not attached:
            return (0, *self.axes)
        return tuple(range(rank))

    def fold_padding(self, mask: Tensor | None, like: Tensor, attached: bool) -> Tensor | None:
        """A mask of the input's axes to (B', T)."""
        if mask is None:
            return None
        real: Tensor = ops.cast(mask, "bool")  # (B, L) or (B, ...)
        if self.is_trivial:
            return real  # (B, T)
        axes = self.axes_of_padding(len(real.shape), attached)
        missing = [axis for axis in range(self.rank - 1) if axis not in axes]
        real = ops.expand_dims(real, missing) if missing else real  # (B, ...) with axes of size 1
        real = ops.broadcast_to(real, ops.shape(like)[: self.rank - 1])  # (B, ...)
        return self.fold(real)  # (B', T)

    def unfold_padding(self, mask: Tensor, like: Tensor) -> Tensor:
        """(B', T) back to the input's axes (B, ...)."""
        if self.is_trivial:
            return mask
        shape = (*self.batches(like), *self.lengths(like))
        inverse = tuple(self.order.index(axis) for axis in range(self.rank - 1))
        return ops.transpose(ops.reshape(mask, shape), inverse)  # (B, ...)

    def fold_tokens(self, tokens: Tensor | None, like: Tensor) -> Tensor | None:
        """Numbers (B, T, ...), T all attention axes in order, to (B', T, ...).

        Integers become int32.
        """
        if tokens is None:
            return None
        if not keras.backend.is_float_dtype(keras.backend.standardize_dtype(tokens.dtype)):
            tokens = ops.cast(tokens, "int32")  # (B, T, ...)
        if self.is_trivial:
            return tokens
        others, tail = self.batches(like)[1:], tuple(tokens.shape)[2:]
        for _ in others:
            tokens = ops.expand_dims(tokens, 1)  # (B, 1, ..., T, ...)
        length = _product(self.lengths(like))
        shape = (*self.batches(like), length, *tail)
        tokens = ops.broadcast_to(tokens, shape)  # (B, ..., T, ...)
        return ops.reshape(tokens, (_product(self.batches(like)), length, *tail))  # (B', T, ...)

    def grid(self, like: Tensor) -> Tensor:
        """The indices of each token along the attention axes: (1, T, axes) int32."""
        lengths = self.lengths(like)
        indices = [ops.arange(length, dtype="int32") for length in lengths]
        parts = ops.meshgrid(*indices, indexing="ij")
        return ops.stack([ops.reshape(part, (1, -1)) for part in parts], axis=-1)  # (1, T, axes)

    def fold_scores(self, x: Tensor | None, query: Tensor, key: Tensor) -> Tensor | None:
        """A mask or bias of the scores' axes to (B'|1, N|1, T|1, S|1).

        Missing axes are put before those of the queries, as Keras does.
        """
        if x is None:
            return None
        return self._fold_scores(x, query, key)

    def _fold_scores(self, x: Tensor, query: Tensor, key: Tensor) -> Tensor:
        folded = len(self.axes)
        full_rank = len(self.batch_axes) + 1 + 2 * folded
        for _ in range(full_rank - len(x.shape)):
            x = ops.expand_dims(x, -2 * folded - 1)  # (B|1, ..., N|1, query axes|1, key axes|1)
        if self.is_trivial:
            return x  # (B|1, N|1, T|1, S|1)
        batches, lengths, keys = self.batches(query), self.lengths(query), self.lengths(key)
        shape = x.shape
        heads = ops.shape(x)[len(batches)]
        if not all(size == 1 for size in shape[: len(batches)]):
            x = ops.broadcast_to(x, (*batches, *ops.shape(x)[len(batches) :]))  # (B, ..., N|1, ...)
            count = _product(batches)
        else:
            count = 1
        tail = (*lengths, *keys)
        x = ops.broadcast_to(
            x, (*ops.shape(x)[: len(batches) + 1], *tail)
        )  # (B|1, ..., N|1, query axes, key axes)
        return ops.reshape(
            x, (count, heads, _product(lengths), _product(keys))
        )  # (B'|1, N|1, T, S)


def _product(sizes: tuple[Any, ...]) -> Any:
    if is_static(*sizes):
        return math.prod(sizes)
    total = sizes[0]
    for size in sizes[1:]:
        total = total * size
    return total
