"""Additive biases of the logits, asked for block by block.

`BlockBias` is what the engine needs of any of them; `TensorBias` is the one
given as an array. Positions that bias the logits bring their own.
"""

import dataclasses
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import keras
from keras import ops

from kerasattention.attend.add_at import add_at
from kerasattention.attend.mask import AttentionMask
from kerasattention.attend.tensors import (
    Axes,
    Columns,
    KeySpans,
    Span,
    Tensor,
    accumulator_of,
    pad_columns,
    shape_of,
    slice_axis,
    split_columns,
)


class BlockBias(Protocol):
    """A bias that never needs its (T, S) tensor."""

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name."""
        ...

    def differentiable(self) -> list[str]:
        """Names of the tensors that have a gradient."""
        ...

    def axes(self, name: str) -> Axes:
        """What the axes of a tensor count; one of size 1 broadcasts."""
        ...

    def with_tensors(self, tensors: dict[str, Tensor]) -> "BlockBias":
        """The same bias of other tensors."""
        ...

    def map_queries(self, change: Callable[[Tensor, int], Tensor]) -> "BlockBias":
        """The same bias with change(tensor, axis of queries) of each tensor that has queries."""
        ...

    def with_head_tensors(self) -> "BlockBias":
        """The same bias, whose tensors hold all that differs by head."""
        ...

    def in_precision(self, dtype: str) -> "BlockBias":
        """The same bias, computed in float32 or float64."""
        ...

    def block(self, mask: AttentionMask, rows: Span, columns: Columns) -> Tensor:
        """The bias of a block: float32 or float64 that broadcasts to (B, N, t, s)."""
        ...

    def block_gradient(
        self, gradient: Tensor, mask: AttentionMask, rows: Span, columns: Columns
    ) -> dict[str, Tensor]:
        """The gradient of each tensor for a block's gradient (B, N, t, s), in its dtype."""
        ...


@runtime_checkable
class PlacingBias(Protocol):
    """A bias with tensors of tokens, which adds a block's gradients in their places."""

    def add_gradients(
        self,
        totals: dict[str, Tensor],
        gradient: Tensor,
        mask: AttentionMask,
        rows: Span,
        columns: Columns,
        heads: Span | None = None,
    ) -> dict[str, Tensor]:
        """The gradients so far and those of a block, whose place may be a tensor.

        `heads` are the query heads of the block, of the totals' heads; None for all.
        """
        ...


@dataclasses.dataclass(frozen=True)
class TensorBias:
    """A bias held as a tensor of rank 4 that broadcasts to (B, N, T, S)."""

    bias: Tensor

    def tensors(self) -> dict[str, Tensor]:
        return {"attention_bias": self.bias}

    def differentiable(self) -> list[str]:
        return ["attention_bias"]

    def axes(self, name: str) -> Axes:
        return ("batch", "heads", None, None)

    def with_tensors(self, tensors: dict[str, Tensor]) -> "TensorBias":
        return TensorBias(tensors["attention_bias"])

    def map_queries(self, change: Callable[[Tensor, int], Tensor]) -> "TensorBias":
        return self if self.bias.shape[2] == 1 else TensorBias(change(self.bias, 2))

    def with_head_tensors(self) -> "TensorBias":
        return self

    def in_precision(self, dtype: str) -> "TensorBias":
        return self

    def block(self, mask: AttentionMask, rows: Span, columns: Columns) -> Tensor:
        bias = slice_axis(slice_axis(self.bias, 2, rows), 3, columns)  # (B|1, N|1, t|1, s|1)
        return ops.cast(bias, accumulator_of(bias.dtype))  # (B|1, N|1, t|1, s|1)

    def block_gradient(
        self, gradient: Tensor, mask: AttentionMask, rows: Span, columns: Columns
    ) -> dict[str, Tensor]:
        gradient = self._sum_to_axes(gradient)  # (B|1, N|1, t|1, s|1)
        sizes = shape_of(self.bias)
        for axis, span in ((2, rows), (3, columns)):
            if self.bias.shape[axis] != 1:
                gradient = pad_columns(gradient, axis, span, sizes[axis])
        return {"attention_bias": gradient}  # (B|1, N|1, T|1, S|1)

    def add_gradient(self, total: Tensor, gradient: Tensor, rows: Span, columns: Columns) -> Tensor:
        """Adds in place of the block, where that is not known before it runs."""
        if isinstance(columns, KeySpans):
            for span, part in split_columns(gradient, 3, columns):
                total = self.add_gradient(total, part, rows, span)
            return total
        gradient = self._sum_to_axes(gradient)  # (B|1, N|1, t|1, s|1)
        whole = [self.bias.shape[axis] == 1 for axis in (2, 3)]
        starts = [
            0 if one else span.start for one, span in zip(whole, (rows, columns), strict=True)
        ]
        here = slice_axis(slice_axis(total, 2, rows), 3, columns)  # (B|1, N|1, t|1, s|1)
        if keras.backend.backend() == "torch":
            here += gradient  # a view: an update would copy all of it for each block
            return total
        return ops.slice_update(total, (0, 0, *starts), here + gradient)  # (B|1, N|1, T|1, S|1)

    def rows_gradient(self, gradient: Tensor, columns: Columns) -> Tensor:
        """The gradient of a block's rows of the bias, (B|1, N|1, t, S|1)."""
        gradient = self._sum_to_axes(gradient)  # (B|1, N|1, t|1, s|1)
        if self.bias.shape[3] == 1:
            return gradient
        return pad_columns(gradient, 3, columns, shape_of(self.bias)[3])  # (B|1, N|1, t, S)

    def _sum_to_axes(self, gradient: Tensor) -> Tensor:
        broadcast = [axis for axis in range(4) if self.bias.shape[axis] == 1]
        return (
            ops.sum(gradient, axis=broadcast, keepdims=True) if broadcast else gradient
        )  # (B|1, N|1, t|1, s|1)


@dataclasses.dataclass(frozen=True)
class SumOfBiases:
    """Several biases, added."""

    biases: tuple[BlockBias, ...]

    def tensors(self) -> dict[str, Tensor]:
        return {
            f"{index}/{name}": tensor
            for index, bias in enumerate(self.biases)
            for name, tensor in bias.tensors().items()
        }

    def differentiable(self) -> list[str]:
        return [
            f"{index}/{name}"
            for index, bias in enumerate(self.biases)
            for name in bias.differentiable()
        ]

    def axes(self, name: str) -> Axes:
        index, _, name = name.partition("/")
        return self.biases[int(index)].axes(name)

    def map_queries(self, change: Callable[[Tensor, int], Tensor]) -> "SumOfBiases":
        return SumOfBiases(tuple(bias.map_queries(change) for bias in self.biases))

    def with_head_tensors(self) -> "SumOfBiases":
        return SumOfBiases(tuple(bias.with_head_tensors() for bias in self.biases))

    def with_tensors(self, tensors: dict[str, Tensor]) -> "SumOfBiases":
        return SumOfBiases(
            tuple(
                bias.with_tensors({name: tensors[f"{index}/{name}"] for name in bias.tensors()})
                for index, bias in enumerate(self.biases)
            )
        )

    def in_precision(self, dtype: str) -> "SumOfBiases":
        return SumOfBiases(tuple(bias.in_precision(dtype) for bias in self.biases))

    def block(self, mask: AttentionMask, rows: Span, columns: Columns) -> Tensor:
        blocks = [bias.block(mask, rows, columns) for bias in self.biases]
        return sum(blocks[1:], start=blocks[0])  # (B|1, N|1, t|1, s|1)

    def block_gradient(
        self, gradient: Tensor, mask: AttentionMask, rows: Span, columns: Columns
    ) -> dict[str, Tensor]:
        return {
            f"{index}/{name}": tensor
            for index, bias in enumerate(self.biases)
            for name, tensor in bias.block_gradient(gradient, mask, rows, columns).items()
        }


def add_block_gradient(
    bias: BlockBias,
    totals: dict[str, Tensor],
    gradient: Tensor,
    mask: AttentionMask,
    rows: Span,
    columns: Columns,
    heads: Span | None = None,
) -> dict[str, Tensor]:
    """The gradients so far and those of one more block, whose place may be a tensor.

    Args:
        bias: Whose gradients they are.
        totals: One for each of the bias's tensors that has a gradient.
        gradient: (B, N, t, s).
        heads: The query heads of the block, where `bias` is `of_heads()` and the totals are of
            all heads. Only a `PlacingBias` can tell where they belong.
    """
    if isinstance(bias, SumOfBiases):
        return {
            f"{index}/{name}": total
            for index, part in enumerate(bias.biases)
            for name, total in add_block_gradient(
                part,
                {name: totals[f"{index}/{name}"] for name in part.differentiable()},
                gradient,
                mask,
                rows,
                columns,
            ).items()
        }
    if isinstance(bias, TensorBias):
        return {
            name: bias.add_gradient(total, gradient, rows, columns)
            for name, total in totals.items()
        }
    if isinstance(bias, PlacingBias):
        return bias.add_gradients(totals, gradient, mask, rows, columns, heads)
    found = bias.block_gradient(gradient, mask, rows, columns)
    return {name: total + found[name] for name, total in totals.items()}


def of_heads(bias: BlockBias, heads: Span) -> BlockBias:
    """The same bias of some query heads, where its tensors hold all that differs by head."""

    def part(x: Tensor, axes: Axes) -> Tensor:
        axis = axes.index("heads") if "heads" in axes else None
        return x if axis is None or x.shape[axis] == 1 else slice_axis(x, axis, heads)

    return bias.with_tensors({name: part(x, bias.axes(name)) for name, x in bias.tensors().items()})


def add_in_place(
    total: Tensor, part: Tensor, axis: int, columns: Columns, others: dict[int, Span] | None = None
) -> Tensor:
    """Adds a part of some tokens in their place on an axis, and in spans of others."""
    for span, of_span in split_columns(part, axis, columns):
        total = add_at(total, {axis: span, **(others or {})}, of_span)
    return total


def join_biases(biases: list[BlockBias | None]) -> BlockBias | None:
    given = [bias for bias in biases if bias is not None]
    if len(given) > 1:
        return SumOfBiases(tuple(given))
    return given[0] if given else None
