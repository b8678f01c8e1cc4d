"""Running a plan on JAX: one compiled function per shape, caches donated to it."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import keras

from kerasattention._keras import get_keras_mask, set_keras_mask
from kerasattention.attend.tensors import Tensor
from kerasattention.decoding.cache.context import CacheContext, Moment
from kerasattention.decoding.cache.storage import ArrayMemory
from kerasattention.decoding.graph.plan import Plan, as_logits, run_each, run_once, run_whole
from kerasattention.decoding.sampling import are_unusable, choose_tokens

Lent = dict[int, tuple[Tensor, Tensor | None]]


class Runner:
    """Holds the caches of one decoder and runs prompts, steps and loops.

    Args:
        plan: How the model is decoded.
        model: The model, whose weights are read anew for each run.
        batch: B.
        max_length: Slots of a cache without a window.
    """

    compiles = True

    def __init__(self, plan: Plan, model: keras.Model, batch: int, max_length: int) -> None:
        self.plan, self.batch, self.max_length = plan, batch, max_length
        self.variables = list({id(v): v for v in model.variables}.values())
        self._prompt = jax.jit(self._run_prompt, donate_argnums=1)
        self._after = jax.jit(self._run_after, donate_argnums=1)
        self._whole = jax.jit(self._run_whole)
        self._loop = jax.jit(self._run_loop, static_argnums=0, donate_argnums=2)
        self.reset()

    def reset(self) -> None:
        memory = ArrayMemory.allocate(self.plan.specs, self.batch, self.max_length)
        self.arrays = memory.arrays
        self.crossed: dict[int, Any] = {}
        self.lent: Lent = {}

    def prompt(self, inputs: dict[int, Tensor], count: int, padding: Tensor | None) -> Tensor:
        """Logits (B, V) after a prompt into empty caches."""
        logits, self.arrays, self.crossed, self.lent = self._prompt(
            self._weights(), self.arrays, inputs, jnp.int32(count), padding
        )
        return logits

    def whole(self, inputs: dict[int, Tensor]) -> Tensor:
        """The model's output (B, T, V) without caches."""
        return self._whole(self._weights(), inputs)

    def after(self, tokens: Tensor, start: int, count: int, padding: Tensor | None) -> Tensor:
        """Logits (B, V) after tokens (B, t) that follow others."""
        logits, self.arrays = self._after(
            self._weights(),
            self.arrays,
            self.crossed,
            self.lent,
            tokens,
            jnp.int32(start),
            None if tokens.shape[1] == 1 else jnp.int32(count),
            padding,
        )
        return logits

    def loop(
        self,
        kind: Any,
        numbers: Any,
        tokens: Tensor,
        start: int,
        steps: int,
        room: int,
        padding: Tensor | None,
        finished: Tensor,
        stop: Tensor,
    ) -> tuple[Tensor, Tensor, int, int]:
        """Up to `steps` tokens (B, room) from the last one, who is finished, how many.

        Also the first step with logits that are unusable; `room` where none has.
        """
        numbers = tuple(jnp.asarray(x) for x in numbers)
        self.arrays, made, finished, count, failed = self._loop(
            (kind, room),
            self._weights(),
            self.arrays,
            self.crossed,
            self.lent,
            tokens,
            jnp.int32(start),
            jnp.int32(steps),
            padding,
            finished,
            stop,
            numbers,
        )
        return made, finished, int(count), int(failed)

    def _weights(self) -> list[Tensor]:
        return [variable.value for variable in self.variables]

    def _scope(self, weights: list[Tensor]) -> keras.StatelessScope:
        return keras.StatelessScope(state_mapping=list(zip(self.variables, weights, strict=True)))

    def _run_whole(self, weights: list[Tensor], inputs: dict[int, Tensor]) -> Tensor:
        with self._scope(weights):
            return run_whole(self.plan, inputs)

    def _run_prompt(
        self,
        weights: list[Tensor],
        arrays: Any,
        inputs: dict[int, Tensor],
        count: Tensor,
        padding: Tensor | None,
    ) -> Any:
        plan, memory = self.plan, ArrayMemory(arrays)
        crossed: dict[int, Any] = {}
        moment = Moment(0, count, True, padding)
        tokens = inputs[plan.tokens]
        with self._scope(weights):
            lent = run_once(plan, inputs)
            context = self._context(memory, moment, crossed, tokens)
            logits = run_each(plan, context, tokens, lent, self.max_length)
        kept = {slot: (x, get_keras_mask(x)) for slot, x in lent.items()}
        return logits, memory.arrays, crossed, kept

    def _run_after(
        self,
        weights: list[Tensor],
        arrays: Any,
        crossed: Any,
        lent: Lent,
        tokens: Tensor,
        start: Tensor,
        count: Tensor | None,
        padding: Tensor | None,
    ) -> Any:
        memory = ArrayMemory(arrays)
        moment = Moment(start, count, False, padding)
        with self._scope(weights):
            context = self._context(memory, moment, crossed, tokens)
            logits = run_each(self.plan, context, tokens, _with_masks(lent), self.max_length)
        return logits, memory.arrays

    def _run_loop(
        self,
        static: Any,
        weights: list[Tensor],
        arrays: Any,
        crossed: Any,
        lent: Lent,
        tokens: Tensor,
        start: Tensor,
        steps: Tensor,
        padding: Tensor | None,
        finished: Tensor,
        stop: Tensor,
        numbers: Any,
    ) -> Any:
        kind, room = static
        made = jnp.zeros((self.batch, room), "int32")
        after = functools.partial(self._run_after, weights)

        def wanted(state: Any) -> Tensor:
            return (state[0] < steps) & ~jnp.all(state[3])

        def one(state: Any) -> Any:
            index, arrays, tokens, finished, made, failed = state
            at = start + index
            logits, arrays = after(arrays, crossed, lent, tokens[:, None], at, None, padding)
            logits = as_logits(self.plan, logits)
            fails = jnp.any(are_unusable(logits))
            failed = jnp.minimum(failed, jnp.where(fails, index, room))
            chosen = choose_tokens(logits, kind, numbers, at + 1, padding)
            chosen = jnp.where(finished, tokens, chosen)
            finished = finished | jnp.any(chosen[:, None] == stop[None], axis=1)
            made = jax.lax.dynamic_update_slice(made, chosen[:, None], (0, index))
            return index + 1, arrays, chosen, finished, made, failed

        state = (jnp.int32(0), arrays, tokens, finished, made, jnp.int32(room))
        count, arrays, _, finished, made, failed = jax.lax.while_loop(wanted, one, state)
        return arrays, made, finished, count, failed

    def _context(
        self, memory: ArrayMemory, moment: Moment, crossed: Any, tokens: Tensor
    ) -> CacheContext:
        return CacheContext(
            self.plan.specs,
            memory,
            moment,
            crossed,
            length=tokens.shape[1],
            max_length=self.max_length,
        )


def _with_masks(lent: Lent) -> dict[int, Tensor]:
    for x, mask in lent.values():
        if mask is not None:
            set_keras_mask(x, mask)
    return {slot: x for slot, (x, _) in lent.items()}
