"""`scaled_dot_product_attention()`: the one function that both layers call."""

from typing import Any, Unpack

from keras import ops

from kerasattention import checks
from kerasattention.attend.added_masks import check_not_added
from kerasattention.attend.bias import TensorBias
from kerasattention.attend.int32 import check_int32
from kerasattention.attend.mask import AttentionMask
from kerasattention.attend.prepare import InputOptions, check_heads, expand_mask, make_inputs
from kerasattention.attend.registry import Kernel
from kerasattention.attend.run import Run, run_sharded
from kerasattention.attend.sharing import HeadAxes, Ring, find_share
from kerasattention.attend.tensors import Tensor


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
    for ids in (query_segments, key_segments):
        check_int32("segment_ids", ids)
    check_not_added("attention_mask", attention_mask)
    mask = AttentionMask(
        causal=causal,
        window=sliding_window,
        query_segments=_as_tensor(query_segments, "int32"),
        key_segments=_as_tensor(key_segments, "int32"),
        mask=expand_mask(_as_tensor(attention_mask, "bool"), "attention_mask"),
    )
    bias = _as_tensor(attention_bias, None)
    checks.bias(bias)
    bias = expand_mask(bias, "attention_bias")
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
    head_axes: HeadAxes | None = None,
    ring: Ring | None = None,
    **options: Unpack[InputOptions],
) -> Tensor | tuple[Tensor, Tensor]:
    """`scaled_dot_product_attention()` with an `AttentionMask` and a list of biases.

    Args:
        query: (B, T, N, H); `key`, `value` and `return_scores` likewise as documented there.
        implementation: As documented there, or a row of the registry.
        never_hold_scores: Refuse a kernel that holds (T, S) logits.
        block_size: Queries of a block; None for the kernel's own choice.
        head_axes: The axes of a mesh of devices that split the heads.
        ring: The devices that split the tokens, each of which then has a part of them; for lengths
            that divide, and without masks and biases (B, N, T, S) and `return_scores`.
        **options: Of `make_inputs()`.
    """
    if return_scores and never_hold_scores:
        raise ValueError(
            "`flash_attention=True` demands a path that never holds (T, S) scores, "
            "and `return_attention_scores=True` asks for them. Use "
            "`flash_attention=None`, or leave out `return_attention_scores`."
        )
    run = Run(return_scores, implementation, never_hold_scores, block_size)
    share = find_share(query, key, head_axes, ring)
    if share is None:
        results = run(make_inputs(query, key, value, mask, **options))
    else:
        results = run_sharded(run, share, query, key, value, mask, **options)
    return results if return_scores else results[0]


def _as_tensor(x: Tensor | None, dtype: str | None) -> Tensor | None:
    if x is None:
        return None
    x = ops.convert_to_tensor(x)
    return ops.cast(x, dtype) if dtype else x
