"""`AttentionInputs` of what a caller gives: shapes are checked, heads grouped, biases joined."""

import dataclasses
import math
from typing import Any, TypedDict

from keras import ops

from kerasattention.attend.bias import BlockBias, TensorBias, join_biases
from kerasattention.attend.dropout import draw_seed
from kerasattention.attend.inputs import AttentionInputs
from kerasattention.attend.mask import AttentionMask
from kerasattention.attend.tensors import (
    Tensor,
    accumulator_of,
    shape_of,
    split_key_heads,
    split_query_heads,
)


class InputOptions(TypedDict, total=False):
    """The options of `make_inputs()`, which has their defaults."""

    biases: list[BlockBias] | None
    scale: float | None
    soft_cap: float | None
    sink: Tensor | None
    rate: float
    seed: Any


def make_inputs(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: AttentionMask,
    *,
    biases: list[BlockBias] | None = None,
    scale: float | None = None,
    soft_cap: float | None = None,
    sink: Tensor | None = None,
    rate: float = 0.0,
    seed: Any = None,
) -> AttentionInputs:
    """Brings everything into the engine's layout."""
    kv_heads = key.shape[2]
    sizes = (query.shape[2], shape_of(query)[1], shape_of(key)[1])
    given = [_with_known_axes(bias, sizes) for bias in biases or [] if bias is not None]
    if mask.mask is not None:
        mask = dataclasses.replace(mask, mask=broadcast_unknown_axes(mask.mask, sizes))
    precision = accumulator_of(query.dtype)
    if sink is not None:
        sink = ops.reshape(sink, (kv_heads, query.shape[2] // kv_heads))  # (K, G)
    return AttentionInputs(
        query=split_query_heads(query, kv_heads),
        key=split_key_heads(key),
        value=split_key_heads(value),
        mask=mask,
        scale=1.0 / math.sqrt(query.shape[-1]) if scale is None else scale,
        bias=join_biases([bias.in_precision(precision) for bias in given]),
        sink=sink,
        seed=draw_seed(seed) if rate > 0.0 else None,
        rate=rate,
        soft_cap=soft_cap,
    )


def check_heads(query: Tensor, key: Tensor, value: Tensor) -> None:
    """Refuses projections whose shapes do not belong together."""
    shapes = (
        f"Received: query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"
    )
    for name, x in (("query", query), ("key", key), ("value", value)):
        if len(x.shape) != 4:
            raise ValueError(f"`{name}` must have 4 axes (batch, length, heads, size). {shapes}")
    if query.shape[2] % key.shape[2] != 0:
        raise ValueError("The heads of `query` must be a multiple of the heads of `key`. " + shapes)
    if query.shape[3] != key.shape[3]:
        raise ValueError("`query` and `key` must have one head size. " + shapes)
    if key.shape[1:3] != value.shape[1:3]:
        raise ValueError("`key` and `value` must agree in length and heads. " + shapes)


def expand_mask(mask: Tensor | None, name: str) -> Tensor | None:
    """(T, S), (B, T, S) or (B, N, T, S) to rank 4."""
    if mask is None:
        return None
    rank = len(mask.shape)
    if rank == 2:
        return mask[None, None]  # (1, 1, T, S)
    if rank == 3:
        return mask[:, None]  # (B, 1, T, S)
    if rank == 4:
        return mask
    raise ValueError(
        f"`{name}` must have shape (T, S), (B, T, S), (B, 1, T, S) or (B, N, T, S). "
        f"Received shape {tuple(mask.shape)}"
    )


def broadcast_unknown_axes(x: Tensor, sizes: tuple[Any, Any, Any]) -> Tensor:
    """A mask or bias of rank 4 whose axes after the first are 1 or those of (N, T, S).

    While TensorFlow traces a graph it may know neither. Where an axis turns out to be whole,
    nothing is copied.
    """
    if None not in tuple(x.shape)[1:]:
        return x
    known = [1 if size == 1 else whole for size, whole in zip(x.shape[1:], sizes, strict=True)]
    return ops.broadcast_to(x, (shape_of(x)[0], *known))  # (B|1, N|1, T|1, S|1)


def _with_known_axes(bias: BlockBias, sizes: tuple[Any, Any, Any]) -> BlockBias:
    if not isinstance(bias, TensorBias):
        return bias
    return TensorBias(broadcast_unknown_axes(bias.bias, sizes))
