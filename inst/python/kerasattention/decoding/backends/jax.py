"""Decoding on JAX: one compiled function per shape, to which the caches are donated."""

from typing import Any

import jax
import jax.numpy as jnp
import keras

from kerasattention.attend.tensors import Tensor
from kerasattention.decoding.backends.placement_jax import Placement
from kerasattention.decoding.backends.runner import (
    Kept,
    LoopResult,
    LoopState,
    choose_next,
    positions_at,
    traced_extend,
    traced_prefill,
)
from kerasattention.decoding.cache.storage import ArrayStorage
from kerasattention.decoding.graph.plan import Plan
from kerasattention.decoding.graph.run import Values, run_full

Weights = list[Tensor]


class JaxRunner:
    """A `Runner` of compiled functions without side effects.

    Args:
        plan: How the model is decoded.
        model: The model, whose weights are read anew for each run.
        batch: B.
        max_length: The number of slots of a cache without a window.
    """

    compiles = True

    def __init__(self, plan: Plan, model: keras.Model, batch: int, max_length: int) -> None:
        self.plan, self.batch, self.max_length = plan, batch, max_length
        self.variables = list({id(v): v for v in model.variables}.values())
        self._prefill = jax.jit(self._run_prefill, donate_argnums=1)
        self._extend = jax.jit(self._run_extend, donate_argnums=1)
        self._full_pass = jax.jit(self._run_full_pass)
        self._decode_loop = jax.jit(self._run_decode_loop, static_argnums=0, donate_argnums=2)
        self._placement = Placement(plan.specs, batch, max_length)
        self.reset()

    def reset(self) -> None:
        self.arrays = self._placement.allocate()
        self.kept: Kept = ({}, {})

    def prefill(self, inputs: Values, count: int, padding: Tensor | None) -> Tensor:
        logits, self.arrays, self.kept = self._prefill(
            self._weights(), self.arrays, inputs, jnp.int32(count), padding
        )
        return logits

    def full_pass(self, inputs: Values) -> Tensor:
        return self._full_pass(self._weights(), inputs)

    def extend(
        self,
        tokens: Tensor,
        position: int,
        count: int,
        padding: Tensor | None,
        given: Values | None = None,
    ) -> Tensor:
        real = None if tokens.shape[1] == 1 else jnp.int32(count)
        logits, self.arrays = self._extend(
            self._weights(),
            self.arrays,
            self.kept,
            tokens,
            jnp.int32(position),
            real,
            padding,
            given or {},
        )
        return logits

    def decode_loop(self, state: LoopState) -> LoopResult:
        static = (state.kind, state.room)
        numbers = tuple(jnp.asarray(x) for x in state.numbers)
        state = state._replace(
            kind=None,
            room=None,
            numbers=numbers,
            position=jnp.int32(state.position),
            steps=jnp.int32(state.steps),
        )
        self.arrays, made, finished, count, failed = self._decode_loop(
            static, self._weights(), self.arrays, self.kept, state
        )
        return LoopResult(made, finished, int(count), int(failed))

    def _weights(self) -> Weights:
        return [variable.value for variable in self.variables]

    def _scope(self, weights: Weights) -> keras.StatelessScope:
        return keras.StatelessScope(state_mapping=list(zip(self.variables, weights, strict=True)))

    # Compiled ---------------------------------------------------------------------

    def _run_full_pass(self, weights: Weights, inputs: Values) -> Tensor:
        inputs = self._placement.split_rows(inputs)
        with self._scope(weights):
            return run_full(self.plan, inputs)

    def _run_prefill(
        self, weights: Weights, arrays: Any, inputs: Values, count: Tensor, padding: Tensor | None
    ) -> Any:
        storage = ArrayStorage(arrays)
        inputs, padding = self._placement.split_rows((inputs, padding))
        with self._scope(weights):
            logits, kept = traced_prefill(self, storage, inputs, count, padding)
        return logits, self._placement.keep(storage), kept

    def _run_extend(
        self,
        weights: Weights,
        arrays: Any,
        kept: Kept,
        tokens: Tensor,
        position: Tensor,
        count: Tensor | None,
        padding: Tensor | None,
        given: Values | None = None,
    ) -> Any:
        storage = ArrayStorage(arrays)
        kept, tokens, padding, given = self._placement.split_rows((kept, tokens, padding, given))
        with self._scope(weights):
            logits = traced_extend(self, storage, kept, tokens, position, count, padding, given)
        return logits, self._placement.keep(storage)

    def _run_decode_loop(
        self, static: Any, weights: Weights, arrays: Any, kept: Any, state: LoopState
    ) -> Any:
        kind, room = static
        state = state._replace(kind=kind, room=room)

        def goes_on(carry: Any) -> Tensor:
            index, _, _, finished, _, _ = carry
            return (index < state.steps) & ~jnp.all(finished)

        def decode_one(carry: Any) -> Any:
            index, arrays, tokens, finished, made, failed = carry
            at = state.position + index
            given = positions_at(state, index)
            logits, arrays = self._run_extend(
                weights, arrays, kept, tokens[:, None], at, None, state.padding, given
            )  # (B, V)
            tokens, finished, fails = choose_next(self.plan, state, logits, at, tokens, finished)
            failed = jnp.minimum(failed, jnp.where(fails, index, room))
            made = jax.lax.dynamic_update_slice(made, tokens[:, None], (0, index))  # (B, room)
            return index + 1, arrays, tokens, finished, made, failed

        made = jnp.zeros((self.batch, room), "int32")
        carry = (jnp.int32(0), arrays, state.tokens, state.finished, made, jnp.int32(room))
        carry = jax.lax.while_loop(goes_on, decode_one, carry)
        count, arrays, _, finished, made, failed = carry
        return arrays, made, finished, count, failed
