"""The backward pass of ring attention: gradients of keys and values travel with them, and home."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kerasattention.attend.block import sink_gradient
from kerasattention.attend.finite import clean
from kerasattention.attend.inputs import AttentionInputs
from kerasattention.attend.kernels.jax.ring_parts import (
    Named,
    Parts,
    RingCall,
    over_steps,
    permute,
    with_finite_keys,
)

Tensor = jax.Array


class RingGradients(NamedTuple):
    """Sums so far: of this device's queries and biases, and of the keys and values it holds."""

    stays: Named
    travels: Named


def ring_gradients(
    inputs: AttentionInputs, call: RingCall, output: Tensor, lse: Tensor, upstream: Tensor
) -> Named:
    """The gradients of this device's tensors; those of what devices share are added up outside."""
    if call.guards:
        inputs = dataclasses.replace(inputs, query=clean(inputs.query))
    upstream = upstream.astype(inputs.accumulator)  # (B, K, G, t, Hv)
    # The softmax's own gradient: delta, the row sums of dO * O.
    delta = jnp.sum(upstream * output, axis=-1, keepdims=True)  # (B, K, G, t, 1)
    # Minus infinity marks a row without keys, whose weights are exp(-inf).
    lse = jnp.where(lse == -jnp.inf, jnp.inf, lse)  # (B, K, G, t, 1)

    def visit(part: AttentionInputs, carry: RingGradients) -> RingGradients:
        part = with_finite_keys(part, call).widened()
        found = call.backward(part, lse, delta, upstream)
        return RingGradients(
            *({name: x + found[name] for name, x in sums.items()} for sums in carry)
        )

    def send(carry: RingGradients, hop: int) -> RingGradients:
        return carry._replace(travels=permute(carry.travels, call.ring, hop))

    named, dtype = inputs.tensors(), inputs.accumulator
    zeros = {
        name: jnp.zeros(named[name].shape, dtype)
        for name in inputs.differentiable()
        if name != "sink"
    }
    travels = {name: zeros.pop(name) for name in ("key", "value")}
    parts = Parts(dataclasses.replace(inputs, sink=None), call)
    carry = over_steps(parts, visit, RingGradients(zeros, travels), send)
    home = -call.plan.last_shift % call.ring.size
    travels = permute(carry.travels, call.ring, home) if home else carry.travels
    return carry.stays | travels | sink_gradient(inputs, lse, delta)
