"""Ring attention: each device has a part of the sequence, and keys and values go round.

Every device attends with its queries to the keys that it holds, sends keys and values on to the
next device, and merges what it has found by log-sum-exp (Liu et al. 2023,
https://arxiv.org/abs/2310.01889). The K heads travel, never the N of the queries. All of it runs
within `shard_map()`, on the tensors of one device.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from kerasattention.attend.block import sink_logits
from kerasattention.attend.finite import clean, poison
from kerasattention.attend.gradient import with_gradient_jax
from kerasattention.attend.inputs import AttentionInputs
from kerasattention.attend.kernels.jax.ring_backward import ring_gradients
from kerasattention.attend.kernels.jax.ring_parts import (
    Named,
    Parts,
    RingCall,
    gathered_attention,
    over_steps,
    with_finite_keys,
)
from kerasattention.attend.kernels.jax.ring_plan import ring_plan
from kerasattention.attend.partial import PartialAttention, merge
from kerasattention.attend.poisoned_rows import poisoned_rows
from kerasattention.attend.sharing import Ring
from kerasattention.attend.tensors import are_finite

Tensor = jax.Array


class RingCarry(NamedTuple):
    """What a device has found so far: (B, K, G, t, Hv), (B, K, G, t, 1) and, where keys or values
    may be masked out that are not finite, the queries that see such a one, (B, K, G, t)."""

    output: Tensor
    lse: Tensor
    poisoned: Tensor | None


def ring_attention(
    inputs: AttentionInputs, ring: Ring, holds_scores: bool, block_size: int | None
) -> Tensor:
    """(B, K, G, t, Hv), of the queries of this device.

    Args:
        inputs: Of this device: t queries, keys and values.
        ring: The devices that share the sequence.
        holds_scores: Whether the (t, t) logits of a step are held.
        block_size: Queries of a block; None for the kernel's own choice.
    """
    length = inputs.query.shape[3]
    plan = ring_plan(inputs.mask, length, ring.size)
    # Keys and values travel as they are, and are cast to float32 where they arrive.
    query = inputs.widened().query * inputs.scale  # (B, K, G, t, H)
    inputs = dataclasses.replace(inputs, query=query, scale=1.0)
    call = RingCall(ring, plan, holds_scores, block_size, _may_mask_out(inputs))

    def forward(named: Named) -> tuple[Any, Tensor]:
        return _forward(inputs.with_tensors(named), call)

    def backward(named: Named, output: Any, lse: Tensor, upstream: Any) -> Named:
        return ring_gradients(inputs.with_tensors(named), call, output[0], lse, upstream[0])

    def plain(named: Named) -> Any:
        found = gathered_attention(inputs.with_tensors(named), call)  # (B, K, G, t, Hv)
        return found, jnp.zeros(found.shape[:-1] if call.guards else (), found.dtype)

    output, poisoned = with_gradient_jax(
        forward, backward, plain, inputs.tensors(), inputs.differentiable()
    )  # (B, K, G, t, Hv), (B, K, G, t)
    return poison(output, poisoned > 0.0) if call.guards else output


def _may_mask_out(inputs: AttentionInputs) -> bool:
    """Whether a key or a query may be masked out that may hold a non-finite number."""
    mask = inputs.mask
    return mask.masks_tokens or mask.query_mask is not None or bool(mask.position_rules)


def _forward(inputs: AttentionInputs, call: RingCall) -> tuple[Any, Tensor]:
    """The output and the poisoned queries, and the lse."""
    shape, dtype = inputs.query.shape[:4], inputs.accumulator
    bad_queries = None
    if call.guards:
        bad_queries = jnp.any(~jnp.isfinite(inputs.query), axis=-1)  # (B, K, G, t)
        inputs = dataclasses.replace(inputs, query=clean(inputs.query))
    parts = Parts(dataclasses.replace(inputs, sink=None), call)

    def visit(part: AttentionInputs, carry: RingCarry) -> RingCarry:
        poisoned = carry.poisoned  # (B, K, G, t)
        if poisoned is not None:
            poisoned = lax.cond(
                are_finite([part.key, part.value]),
                lambda: poisoned,
                lambda: poisoned | poisoned_rows(part, part.rows(), True),
            )  # (B, K, G, t)
        found = PartialAttention(*call.forward(with_finite_keys(part, call).widened()))
        merged = merge(PartialAttention(carry.output, carry.lse), found)
        return RingCarry(merged.output, merged.lse, poisoned)

    carry = RingCarry(
        jnp.zeros((*shape, inputs.value.shape[-1]), dtype),  # (B, K, G, t, Hv)
        jnp.full((*shape, 1), -jnp.inf, dtype),  # (B, K, G, t, 1)
        jnp.zeros(shape, bool) if call.guards else None,  # (B, K, G, t)
    )
    carry = over_steps(parts, visit, carry)
    output, lse = carry.output, carry.lse
    poisoned = jnp.zeros((), bool)
    if call.guards:
        # A query that is not finite gives NaN if it sees any key.
        sees_key = lse[..., 0] > -jnp.inf  # (B, K, G, t)
        poisoned = carry.poisoned | (bad_queries & sees_key)  # (B, K, G, t)
    sink = sink_logits(inputs)  # (1, K, G, 1, 1)
    if sink is not None:
        of_sink = PartialAttention(jnp.zeros_like(output), jnp.broadcast_to(sink, lse.shape))
        output, lse = merge(PartialAttention(output, lse), of_sink)
    return (output, poisoned.astype(dtype)), lse
