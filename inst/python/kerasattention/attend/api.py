"""`scaled_dot_product_attention()`: the one function that both layers call."""

import dataclasses
import math
from typing import Any, TypedDict, Unpack

from keras import ops

from kerasattention.attend.bias import BlockBias, TensorBias, join_biases
from kerasattention.attend.dropout import draw_seed
from kerasattention.attend.finite import with_finite_inputs
from kerasattention.attend.inputs import AttentionInputs
from kerasattention.attend.mask import AttentionMask
from kerasattention.attend.registry import Kernel, select_kernel
from kerasattention.attend.tensors import (
    Tensor,
    accumulator_of,
    join_query_heads,
    shape_of,
    split_key_heads,
    split_query_heads,
)
from kerasattention.attend.weights import attention_weights


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    attention_mask: Tensor | None = None,
    attention_bias: Tensor | None = None,
    causal: bool = False,
    sliding_window: int | None = None,
    segment_ids: Tensor | tuple[Tensor, Tensor] | None = None,
    scale: float | None = None,
    logit_soft_cap: float | None = None,
    sink: Tensor | None = None,
    dropout: float = 0.0,
    seed: Any = None,
    return_scores: bool = False,
    implementation: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of queries over keys and values, whatever masks and options.

    Softmax of scale * query @ key (Vaswani et al. 2017) with grouped heads
    (Ainslie et al. 2023): N may be any multiple of K, and keys and values are
    never repeated.

    Args:
        query: (B, T, N, H).
        key: (B, S, K, H).
        value: (B, S, K, Hv).
        attention_mask: True / 1 means attend; (T, S), (B, T, S), (B, 1, T, S)
            or (B, N, T, S).
        attention_bias: Added to the logits; same shapes.
        causal: Query t sees keys 0..t.
        sliding_window: A query sees keys closer than this many positions.
        segment_ids: (B, T) integers, or a pair (B, T), (B, S): tokens see only
            their own segment; 0 marks padding.
        scale: Factor of the logits, 1 / sqrt(H) by default.
        logit_soft_cap: c, to make the logits c * tanh(logits / c) before bias
            and masks.
        sink: (N) logits that join the softmax's denominator.
        dropout: Rate at which attention weights are dropped.
        seed: Integer, `keras.random.SeedGenerator` or None, for the dropout.
        return_scores: Whether to return the attention weights too.
        implementation: "plain", "blocked", "fused", or None to choose.

    Returns:
        (B, T, N, Hv) in the dtype of `query`, zero for a query that sees no key;
        with `return_scores` also the weights (B, N, T, S) before dropout.

    Raises:
        ValueError: A shape, option or implementation that does not fit.
    """
    query, key, value = (
        ops.convert_to_tensor(x) for x in (query, key, value)
    )  # (B, T, N, H), (B, S, K, H), (B, S, K, Hv)
    check_heads(query, key, value)
    query_segments, key_segments = (
        segment_ids if isinstance(segment_ids, tuple) else (segment_ids, segment_ids)
    )
    mask = AttentionMask(
        causal=causal,
        window=sliding_window,
        query_segments=_as_tensor(query_segments, "int32"),
        key_segments=_as_tensor(key_segments, "int32"),
        mask=expand_mask(_as_tensor(attention_mask, "bool"), "attention_mask"),
    )
    bias = expand_mask(_as_tensor(attention_bias, None), "attention_bias")
    return attend(
        query,
        key,
        value,
        mask,
        biases=[TensorBias(bias)] if bias is not None else [],
        scale=scale,
        soft_cap=logit_soft_cap,
        sink=sink,
        rate=dropout,
        seed=seed,
        return_scores=return_scores,
        implementation=implementation,
    )


class InputOptions(TypedDict, total=False):
    """The options of `make_inputs()`, which has their defaults."""

    biases: list[BlockBias] | None
    scale: float | None
    soft_cap: float | None
    sink: Tensor | None
    rate: float
    seed: Any


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: AttentionMask,
    *,
    return_scores: bool = False,
    implementation: str | Kernel | None = None,
    never_hold_scores: bool = False,
    block_size: int | None = None,
    **options: Unpack[InputOptions],
) -> Tensor | tuple[Tensor, Tensor]:
    """`scaled_dot_product_attention()` with an `AttentionMask` and a list of biases.

    Args:
        query: (B, T, N, H); `key`, `value` and `return_scores` likewise as documented there.
        implementation: As documented there, or a row of the registry.
        never_hold_scores: Refuse a kernel that holds (T, S) logits.
        block_size: Queries of a block; None for the kernel's own choice.
        **options: Of `make_inputs()`.
    """
    inputs = make_inputs(query, key, value, mask, **options)
    if return_scores and never_hold_scores:
        raise ValueError(
            "`flash_attention=True` demands a path that never holds (T, S) scores, "
            "and `return_attention_scores=True` asks for them. Use "
            "`flash_attention=None`, or leave out `return_attention_scores`."
        )
    kernel = select_kernel(inputs, implementation, never_hold_scores, block_size)
    output = with_finite_inputs(
        inputs, lambda given: kernel.run(given, block_size)
    )  # (B, K, G, T, Hv)
    output = join_query_heads(ops.cast(output, query.dtype))  # (B, T, N, Hv)
    real = mask.query_mask
    if real is not None:
        output = ops.where(real[:, :, None, None], output, ops.zeros_like(output))  # (B, T, N, Hv)
    if not return_scores:
        return output
    return output, ops.cast(attention_weights(inputs), query.dtype)


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


def _as_tensor(x: Tensor | None, dtype: str | None) -> Tensor | None:
    if x is None:
        return None
    x = ops.convert_to_tensor(x)
    return ops.cast(x, dtype) if dtype else x
