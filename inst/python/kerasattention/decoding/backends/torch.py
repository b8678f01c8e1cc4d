"""Decoding on torch: caches written in place, the step traced once."""

import contextlib
from typing import Any

import keras
import torch

from kerasattention._keras import override_calls
from kerasattention.attend.tensors import Tensor
from kerasattention.decoding.backends.products import linear_layers
from kerasattention.decoding.backends.products_torch import torch_products
from kerasattention.decoding.backends.runner import (
    LoopResult,
    LoopState,
    cache_context,
    choose_next,
    positions_at,
)
from kerasattention.decoding.backends.trace_torch import trace
from kerasattention.decoding.cache.context import CrossKV, StepInfo
from kerasattention.decoding.cache.storage import TensorStorage
from kerasattention.decoding.graph.plan import Plan
from kerasattention.decoding.graph.run import (
    Values,
    of_steps,
    run_full,
    run_per_prompt,
    run_per_token,
)

# A trace takes as long as some steps; short continuations do without.
STEPS_BEFORE_TRACE = 4


class TorchRunner:
    """A `Runner` in Python, whose step on one token is traced.

    Args:
        plan: How the model is decoded.
        model: The model.
        batch: B.
        max_length: The number of slots of a cache without a window.
    """

    compiles = False

    def __init__(self, plan: Plan, model: keras.Model, batch: int, max_length: int) -> None:
        self.plan, self.batch, self.max_length = plan, batch, max_length
        # Not the model: decoders are kept with it, and would keep it alive.
        self._linear = linear_layers(model)
        with torch.inference_mode():
            self.storage = TensorStorage(plan.specs, batch, max_length)
        self._products = torch_products(self._linear)
        self._kind: Any = None
        self._steps = 0
        self._trace: Any = None
        self.reset()

    def reset(self) -> None:
        self.cross_kv: CrossKV = {}
        self.prompt_values: Values = {}

    @torch.inference_mode()
    def prefill(self, inputs: Values, count: int, padding: Tensor | None) -> Tensor:
        tokens = inputs[self.plan.tokens]
        info = StepInfo(0, None, True, padding)
        context = cache_context(self, self.storage, info, self.cross_kv, tokens)
        with self._overrides():
            values = run_per_prompt(self.plan, inputs)
            self.prompt_values = of_steps(self.plan, values)
            return run_per_token(self.plan, context, tokens, values)

    @torch.inference_mode()
    def full_pass(self, inputs: Values) -> Tensor:
        return run_full(self.plan, inputs)

    @torch.inference_mode()
    def extend(
        self,
        tokens: Tensor,
        position: int,
        count: int,
        padding: Tensor | None,
        given: Values | None = None,
    ) -> Tensor:
        # What a step is given has the same slots each time.
        self.prompt_values |= given or {}
        with self._overrides():
            if tokens.shape[1] > 1:
                return self._run(tokens, position, padding, self.cross_kv, self.prompt_values)
            return self._decode_one(tokens, position, padding)

    @torch.inference_mode()
    def decode_loop(self, state: LoopState) -> LoopResult:
        tokens, finished = state.tokens, state.finished
        made = torch.zeros((self.batch, state.room), dtype=torch.int32, device=tokens.device)
        unusable = torch.zeros(state.room, dtype=torch.bool, device=tokens.device)
        count = state.steps
        with self._overrides():
            for index in range(state.steps):
                if state.stop.numel() and bool(finished.all()):
                    count = index
                    break
                at = state.position + index
                self.prompt_values |= positions_at(state, index)
                logits = self._decode_one(tokens[:, None], at, state.padding)  # (B, V)
                tokens, finished, unusable[index] = choose_next(
                    self.plan, state, logits, at, tokens, finished
                )
                made[:, index] = tokens
        failed = unusable.nonzero()
        return LoopResult(made, finished, count, int(failed[0]) if len(failed) else state.room)

    def _overrides(self) -> contextlib.AbstractContextManager[None]:
        """Where the layers' products are computed in their fastest form."""
        if self._products.are_outdated():
            self._products = torch_products(self._linear)
            self._trace, self._steps = None, 0
        return override_calls(self._products.overrides)

    # One token --------------------------------------------------------------------

    def _decode_one(self, tokens: Tensor, position: int, padding: Tensor | None) -> Tensor:
        """Logits (B, V) after tokens (B, 1)."""
        at = torch.tensor(position, device=tokens.device)
        given = (tokens, at, *self._kept(padding))
        kind = tuple((x.shape, x.dtype) for x in given)
        if kind != self._kind:
            self._kind, self._steps, self._trace = kind, 0, None
        self._steps += 1
        if self._steps == STEPS_BEFORE_TRACE:
            self._trace = self._make_trace(given, padding)
        if self._trace is not None:
            return self._trace(*given)
        return self._run(tokens, at, padding, self.cross_kv, self.prompt_values)

    def _kept(self, padding: Tensor | None) -> list[Tensor]:
        """The tensors that prefill computes for the steps, besides the caches."""
        cross_kv = [x for pair in self.cross_kv.values() for x in pair]
        return [*([] if padding is None else [padding]), *cross_kv, *self.prompt_values.values()]

    def _make_trace(self, given: tuple[Tensor, ...], padding: Tensor | None) -> Any:
        """The traced step, or None where it does not give what the step gives."""
        calls, slots, ragged = tuple(self.cross_kv), tuple(self.prompt_values), padding is not None

        def step(tokens: Tensor, at: Tensor, *rest: Tensor) -> Tensor:
            padding, rest = (rest[0], rest[1:]) if ragged else (None, rest)
            pairs = zip(rest[0::2], rest[1::2], strict=False)
            cross_kv = dict(zip(calls, pairs, strict=False))
            prompt_values = dict(zip(slots, rest[2 * len(calls) :], strict=True))
            return self._run(tokens, at, padding, cross_kv, prompt_values)

        try:
            traced = trace(step, *given)
        except (RuntimeError, NotImplementedError):  # a layer reads values of its tensors
            return None
        # The given tokens come last: the caches must hold theirs.
        for tokens in (torch.zeros_like(given[0]), given[0]):
            expected, found = (run(tokens, *given[1:]) for run in (step, traced))
            if not torch.allclose(found, expected, rtol=1e-4, atol=1e-4):
                return None
        return traced

    def _run(
        self,
        tokens: Tensor,
        position: Any,
        padding: Tensor | None,
        cross_kv: CrossKV,
        prompt_values: Values,
    ) -> Tensor:
        info = StepInfo(position, None, False, padding)
        context = cache_context(self, self.storage, info, cross_kv, tokens)
        return run_per_token(self.plan, context, tokens, prompt_values)
