"""The parts of ring attention: the inputs of a step, and the loop over all steps."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from kerasattention.attend.block import plan_blocks
from kerasattention.attend.finite import clean
from kerasattention.attend.inputs import AttentionInputs
from kerasattention.attend.kernels import blocked
from kerasattention.attend.kernels.jax.ring_plan import HIDDEN, RingPlan, Steps, Variant
from kerasattention.attend.kernels.jax.tile_loops import TileSize
from kerasattention.attend.kernels.jax.tiled import choose_tile_size, forward_with_lse
from kerasattention.attend.kernels.jax.tiled_backward import backward_from_lse
from kerasattention.attend.kernels.plain import plain_attention
from kerasattention.attend.mask import AttentionMask
from kerasattention.attend.sharing import Ring

Tensor = jax.Array
Named = dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class RingCall:
    """How a ring computes one call.

    Attributes:
        ring: The devices.
        plan: What each computes in each step.
        holds_scores: Whether the logits of a step are held whole.
        block_size: Queries of a block; None for the kernel's own choice.
        guards: Whether numbers that are not finite may be masked out.
    """

    ring: Ring
    plan: RingPlan
    holds_scores: bool
    block_size: int | None
    guards: bool

    def forward(self, part: AttentionInputs) -> tuple[Tensor, Tensor]:
        """Output (B, K, G, t, Hv) and lse (B, K, G, t, 1), -inf for a row without keys."""
        if on_cpu():
            return forward_with_lse(part, self._tile(part), -jnp.inf)
        return blocked.forward_with_lse(part, self._blocks(part), -jnp.inf)

    def backward(
        self, part: AttentionInputs, lse: Tensor, delta: Tensor, upstream: Tensor
    ) -> Named:
        """The gradients of the part's queries, keys, values and bias."""
        if on_cpu():
            return backward_from_lse(part, self._tile(part), lse, delta, upstream)
        return blocked.backward_from_lse(part, self._blocks(part), lse, delta, upstream)

    def _tile(self, part: AttentionInputs) -> TileSize:
        if self.holds_scores:
            return TileSize(part.query.shape[3], part.key.shape[2])
        return choose_tile_size(part, self.block_size)

    def _blocks(self, part: AttentionInputs) -> Any:
        size = part.query.shape[3] if self.holds_scores else self.block_size
        return plan_blocks(part, size or blocked.BLOCK_SIZE)


def _is_of_keys(name: str) -> bool:
    """Whether a tensor of the inputs travels."""
    return name in ("key", "value") or name.startswith("mask/key_")


def on_cpu() -> bool:
    """Whether tiles are computed in loops, as the registry has it for whole sequences."""
    return jax.default_backend() == "cpu"


class Parts:
    """The inputs of each step on this device.

    Attributes:
        moving: The tensors of keys, as this device holds them before the first step.
    """

    def __init__(self, inputs: AttentionInputs, call: RingCall) -> None:
        named = inputs.tensors()
        self.call = call
        self.moving = {name: x for name, x in named.items() if _is_of_keys(name)}
        self._inputs, self._named = inputs, named
        self._here = lax.axis_index(call.ring.axis)

    def variant_at(self, shift: Any) -> Tensor:
        """The number of the variant that this device computes in a step."""
        return jnp.asarray(self.call.plan.table)[self._here, self._keys_of(shift)]

    def part(self, moving: Named, variant: Variant, shift: Any) -> AttentionInputs:
        """The inputs of a step, of its keys and values."""
        inputs = self._inputs.with_tensors(self._named | moving)
        length, keys = inputs.query.shape[3], inputs.key.shape[2]
        first_query, first_key = self._here * length, self._keys_of(shift) * keys
        mask = _mask_of(inputs.mask, variant, first_query, first_key, length, keys)
        if inputs.rate > 0.0:
            inputs = dataclasses.replace(inputs, first_query=first_query, first_key=first_key)
        return dataclasses.replace(inputs, mask=mask)

    def _keys_of(self, shift: Any) -> Any:
        """The device whose keys are here in a step."""
        return (self._here - shift) % self.call.ring.size


def _mask_of(
    mask: AttentionMask, variant: Variant, first_query: Any, first_key: Any, length: int, keys: int
) -> AttentionMask:
    # The queries' padding concerns the finished output only.
    mask = dataclasses.replace(mask, query_mask=None)
    if mask.has_explicit_positions:
        return mask
    if variant.offset is not None:
        return dataclasses.replace(mask, offset=variant.offset)
    start = first_query + mask.offset
    if not variant.has_rules:
        mask = mask.without_position_rules()
        if mask.is_relative:
            # Biases, and rules outside spans of tokens, compare positions too.
            return dataclasses.replace(mask, offset=start - first_key)
    return dataclasses.replace(
        mask,
        offset=0,
        query_positions=start + jnp.arange(length, dtype="int32"),  # (t)
        key_positions=first_key + jnp.arange(keys, dtype="int32"),  # (t)
    )


def over_steps(
    parts: Parts,
    visit: Callable[[AttentionInputs, Any], Any],
    carry: Any,
    send: Callable[[Any, int], Any] = lambda carry, hop: carry,
) -> Any:
    """Calls visit(inputs of a step, carry) in each step in which this device sees keys.

    Args:
        parts: The inputs.
        visit: Gives the next carry.
        carry: The first one.
        send: What of the carry goes with the keys: send(carry, hop) before each step.
    """
    plan, ring = parts.call.plan, parts.call.ring

    def step(steps: Steps, shift: Any, state: tuple[Named, Any]) -> tuple[Named, Any]:
        moving, carry = state
        if steps.hop:
            moving = permute(moving, ring, steps.hop)
            carry = send(carry, steps.hop)

        def compute(variant: int) -> Callable[[Named, Any], Any]:
            if variant == HIDDEN:
                return lambda moving, carry: carry
            kind = plan.variants[variant]
            return lambda moving, carry: visit(parts.part(moving, kind, shift), carry)

        branches = [compute(variant) for variant in steps.variants]
        if len(branches) == 1:
            return moving, branches[0](moving, carry)
        # A table, as the numbers of this step's variants need not follow each other.
        numbers = [
            steps.variants.index(x) if x in steps.variants else 0 for x in range(len(plan.variants))
        ]
        index = jnp.asarray(numbers)[parts.variant_at(shift)]
        return moving, lax.switch(index, branches, moving, carry)

    state = parts.moving, carry
    for steps in plan.steps:
        if steps.count == 1:
            state = step(steps, steps.first, state)
            continue

        def one(index: Any, state: Any, steps: Steps = steps) -> Any:
            return step(steps, steps.first + index * steps.hop, state)

        state = lax.fori_loop(0, steps.count, one, state)
    return state[1]


def with_finite_keys(part: AttentionInputs, call: RingCall) -> AttentionInputs:
    """The inputs with zeros in place of non-finite keys and values, if they may be masked out."""
    if not call.guards:
        return part
    return dataclasses.replace(part, key=clean(part.key), value=clean(part.value))


def permute(tree: Any, ring: Ring, hop: int) -> Any:
    """Sends tensors to the device that is `hop` further."""
    pairs = [(i, (i + hop) % ring.size) for i in range(ring.size)]
    return jax.tree.map(lambda x: lax.ppermute(x, ring.axis, pairs), tree)


def gathered_attention(inputs: AttentionInputs, call: RingCall) -> Tensor:
    """(B, K, G, t, Hv) by the plain formula, for derivatives of any order: holds (t, S) logits."""
    named, ring = inputs.tensors(), call.ring
    for name in filter(_is_of_keys, list(named)):
        of_mask = name.removeprefix("mask/")
        axis = 2 if of_mask == name else inputs.mask.axes(of_mask).index("tokens")
        named[name] = lax.all_gather(named[name], ring.axis, axis=axis, tiled=True)
    first = lax.axis_index(ring.axis) * inputs.query.shape[3]
    inputs = dataclasses.replace(inputs.with_tensors(named), first_query=first)
    mask = dataclasses.replace(inputs.mask, query_mask=None)
    if not mask.has_explicit_positions:
        mask = dataclasses.replace(mask, offset=mask.offset + first)
    return plain_attention(dataclasses.replace(inputs, mask=mask))
