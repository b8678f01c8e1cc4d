"""Checks that the shapes of inputs and masks fit each other.

Pure functions of shapes; None is an unknown size. Every layer call checks its shapes, so
combinations that passed are cached.
"""

import dataclasses
import functools
import math
from typing import Any

from kerasattention.layers.axes import AxisFold, resolve_axes

Shape = tuple[int | None, ...]


@dataclasses.dataclass(frozen=True)
class CallShapes:
    """Shapes of a call's arguments; None for an argument that is not given."""

    query: Shape
    value: Shape
    key: Shape
    query_mask: Shape | None = None
    value_mask: Shape | None = None
    key_mask: Shape | None = None
    attention_mask: Shape | None = None
    attention_bias: Shape | None = None
    segment_ids: Shape | None = None
    positions: Shape | None = None
    bidirectional: Shape | None = None


@functools.lru_cache(maxsize=1024)
def check_inputs(
    query: Shape,
    value: Shape,
    key: Shape,
    attention_axes: tuple[int, ...] | None,
    built_for: Shape | None = None,
) -> None:
    """Refuses a query, value and key that do not belong together.

    Args:
        attention_axes: As the layer was given them.
        built_for: The feature sizes of query, value and key that it was built for.
    """
    received = f"query {_text(query)}, value {_text(value)}, key {_text(key)}"
    if len(query) < 3:
        raise ValueError(
            "Inputs must have at least 3 axes (batch, length, features). "
            f"Received: {received}. A single sequence needs a batch axis of 1."
        )
    if not len(query) == len(value) == len(key):
        raise ValueError(
            f"The numbers of axes of `query`, `value` and `key` must be equal. Received: {received}"
        )
    for name, shape in (("query", query), ("value", value), ("key", key)):
        if shape[-1] is None:
            raise ValueError(f"The last axis of `{name}` must be known. Received: {received}")
    attended = resolve_axes(attention_axes, len(query))
    for axis in range(len(query) - 1):
        if _differ(value[axis], key[axis]):
            raise ValueError(
                "All axes of `value` and `key` but the last must be equal. "
                f"Received: {received} (axis {axis})"
            )
        if axis not in attended and (
            _differ(query[axis], value[axis]) or _differ(query[axis], key[axis])
        ):
            raise ValueError(
                "The batch axes of `query`, `value` and `key` must be equal"
                + (". " if axis == 0 else ", and so all axes that are not attended. ")
                + f"Received: {received} (axis {axis})"
            )
    sizes = tuple(shape[-1] for shape in (query, value, key))
    if built_for is not None and sizes != built_for:
        raise ValueError(
            f"The layer was built for query, value and key features {_text(built_for)}. "
            f"Received: {received}"
        )


@functools.lru_cache(maxsize=1024)
def check_call(shapes: CallShapes, fold: AxisFold, heads: int, axes: int = 1) -> None:
    """Refuses masks, biases and integers that do not fit query, value and key.

    `axes` is the number of axes of the layer's position.
    """
    received = f"query {_text(shapes.query)}, key {_text(shapes.key)}"
    full = scores_shape(shapes.query, shapes.key, fold, heads)
    for name in ("attention_mask", "attention_bias"):
        shape = getattr(shapes, name)
        if shape is not None:
            _check_scores(name, shape, full, len(fold.axes), received)
    for name in ("query_mask", "value_mask", "key_mask"):
        shape = getattr(shapes, name)
        if shape is not None:
            _check_padding(name, shape, getattr(shapes, name.removesuffix("_mask")), fold)
    for name in ("segment_ids", "positions", "bidirectional"):
        shape = getattr(shapes, name)
        if shape is not None:
            _check_tokens(name, shape, shapes.query, fold, axes if name == "positions" else 1)


def scores_shape(query: Shape, key: Shape, fold: AxisFold, heads: int) -> Shape:
    """(B, ..., N, query axes, key axes)."""
    return (
        *(query[axis] for axis in fold.batch_axes),
        heads,
        *(query[axis] for axis in fold.axes),
        *(key[axis] for axis in fold.axes),
    )


def shape_of(name: str, x: Any) -> Shape | None:
    """The shape of an argument, None for None."""
    if x is None:
        return None
    if not hasattr(x, "shape"):
        raise ValueError(f"`{name}` must be a tensor or an array. Received: {name}={x!r}")
    return tuple(x.shape)


def _check_scores(name: str, shape: Shape, full: Shape, attended: int, received: str) -> None:
    """Missing axes are those before the queries' axes, the heads first, as Keras has it."""
    leading = len(shape) - 2 * attended
    if leading >= 0 and len(shape) <= len(full):
        wanted = full[:leading] + full[-2 * attended :]
        if all(size == 1 or not _differ(size, w) for size, w in zip(shape, wanted, strict=True)):
            return
    forms = "(T, S), (B, T, S), (B, 1, T, S) or (B, N, T, S)"
    if len(full) > 4:
        forms = (
            f"the last {2 * attended} of these, those of queries and keys, "
            "or these after the first few or all of the others"
        )
        rule = f"the axes of the scores {_text(full)}: {forms}"
    else:
        rule = f"(B, N, T, S) = {_text(full)}: as {forms}"
    raise ValueError(
        f"`{name}` must broadcast to {rule}. Received: {name} of shape {_text(shape)}; {received}"
    )


def _check_padding(name: str, shape: Shape, like: Shape, fold: AxisFold) -> None:
    axes = fold.axes_of_padding(len(shape)) if 2 <= len(shape) < len(like) else None
    if axes is not None and all(
        (size == 1 and axis == 0) or not _differ(size, like[axis])
        for axis, size in zip(axes, shape, strict=True)
    ):
        return
    of = name.removesuffix("_mask")
    forms = _text(tuple(like[axis] for axis in fold.axes_of_padding(2)))
    if len(like) > 3:
        forms += f" or {_text(like[:-1])}"
    raise ValueError(
        f"`{name}` must have the axes of `{of}` but its last: {forms}. "
        f"Received: {name} of shape {_text(shape)}; {of} {_text(like)}"
    )


def _check_tokens(name: str, shape: Shape, query: Shape, fold: AxisFold, axes: int) -> None:
    lengths = [query[axis] for axis in fold.axes]
    known = [length for length in lengths if length is not None]
    length = math.prod(known) if len(known) == len(lengths) else None
    per_token = len(shape) == 2 or (len(shape) == 3 and axes > 1 and shape[2] == axes)
    if (
        per_token
        and (shape[0] == 1 or not _differ(shape[0], query[0]))
        and not _differ(shape[1], length)
    ):
        return
    forms = f"(B, T) = {_text((query[0], length))}"
    if axes > 1:
        forms += f" or (B, T, axes) = {_text((query[0], length, axes))}"
    elif name == "positions" and len(shape) == 3:
        forms += ", as the layer's `position` does not take several axes"
    raise ValueError(f"`{name}` must have shape {forms}. Received: {name} of shape {_text(shape)}")


def _differ(first: Any, second: Any) -> bool:
    """Whether two sizes are both known and not the same."""
    return first is not None and second is not None and first != second


def _text(shape: Shape) -> str:
    return "(" + ", ".join(str(size) for size in shape) + ("," if len(shape) == 1 else "") + ")"
