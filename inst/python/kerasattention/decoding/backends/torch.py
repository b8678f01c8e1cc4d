"""Running a plan on torch: caches written in place, the step recorded once."""

from typing import Any

import keras
import torch

from kerasattention.attend.tensors import Tensor
from kerasattention.decoding.backends.int8_prompts_torch import int8_products
from kerasattention.decoding.backends.trace_torch import Step, record
from kerasattention.decoding.cache.context import CacheContext, Moment
from kerasattention.decoding.cache.storage import TorchMemory
from kerasattention.decoding.graph.plan import Plan, as_logits, run_each, run_once, run_whole
from kerasattention.decoding.sampling import are_unusable, choose_tokens

# A recording takes as long as some steps; short continuations do without.
STEPS_BEFORE_RECORDING = 4


class Runner:
    """Holds the caches of one decoder and runs prompts, steps and loops.

    Args:
        plan: How the model is decoded.
        model: The model.
        batch: B.
        max_length: Slots of a cache without a window.
    """

    compiles = False

    def __init__(self, plan: Plan, model: keras.Model, batch: int, max_length: int) -> None:
        self.plan = plan
        # Not the model: decoders are kept with it, and would keep it alive.
        self._weights = list(model.weights)
        self.batch, self.max_length = batch, max_length
        with torch.inference_mode():
            self.memory = TorchMemory(plan.specs, batch, max_length)
        self._kind: Any = None
        self._steps = 0
        self._recorded: Step | None = None
        self.reset()

    def reset(self) -> None:
        self.crossed: dict[int, Any] = {}
        self.lent: dict[int, Tensor] = {}

    @torch.inference_mode()
    def prompt(self, inputs: dict[int, Tensor], count: int, padding: Tensor | None) -> Tensor:
        """Logits (B, V) after a prompt into empty caches."""
        tokens = inputs[self.plan.tokens]
        context = self._context(Moment(0, None, True, padding), self.crossed, tokens)
        with int8_products(self._weights):
            self.lent = run_once(self.plan, inputs)
            return run_each(self.plan, context, tokens, self.lent, self.max_length)

    @torch.inference_mode()
    def whole(self, inputs: dict[int, Tensor]) -> Tensor:
        """The model's output (B, T, V) without caches."""
        return run_whole(self.plan, inputs)

    @torch.inference_mode()
    def after(self, tokens: Tensor, start: int, count: int, padding: Tensor | None) -> Tensor:
        """Logits (B, V) after tokens (B, t) that follow others."""
        if tokens.shape[1] > 1:
            with int8_products(self._weights):
                return self._run(tokens, start, padding)
        return self._one(tokens, start, padding)

    @torch.inference_mode()
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
        made = torch.zeros((self.batch, room), dtype=torch.int32, device=tokens.device)
        unusable = torch.zeros((self.batch, room), dtype=torch.bool, device=tokens.device)
        count = steps
        for index in range(steps):
            if stop.numel() and bool(finished.all()):
                count = index
                break
            logits = self._one(tokens[:, None], start + index, padding)
            logits = as_logits(self.plan, logits)
            chosen = choose_tokens(logits, kind, numbers, start + index + 1, padding)
            tokens = torch.where(finished, tokens, chosen)
            finished = finished | (tokens[:, None] == stop[None]).any(dim=1)
            made[:, index] = tokens
            unusable[:, index] = are_unusable(logits)
        failed = unusable.any(dim=0).nonzero()
        return made, finished, count, int(failed[0]) if len(failed) else room

    def _one(self, tokens: Tensor, start: int, padding: Tensor | None) -> Tensor:
        at = torch.tensor(start, device=tokens.device)
        given = (tokens, at, *self._given(padding))
        kind = tuple((x.shape, x.dtype) for x in given)
        outdated = self._recorded is not None and self._recorded.is_outdated()
        if kind != self._kind or outdated:
            self._kind, self._steps, self._recorded = kind, 0, None
        self._steps += 1
        if self._steps == STEPS_BEFORE_RECORDING:
            self._recorded = self._record(given, padding)
        if self._recorded is not None:
            return self._recorded(*given)
        return self._run(tokens, at, padding)

    def _given(self, padding: Tensor | None) -> list[Tensor]:
        """What a prompt leaves behind for its steps, besides the caches."""
        kept = [x for pair in self.crossed.values() for x in pair]
        return [*([] if padding is None else [padding]), *kept, *self.lent.values()]

    def _record(self, given: tuple[Tensor, ...], padding: Tensor | None) -> Step | None:
        """The step as recorded, if that gives what the step itself does."""
        calls, slots, ragged = tuple(self.crossed), tuple(self.lent), padding is not None

        def step(tokens: Tensor, at: Tensor, *rest: Tensor) -> Tensor:
            kept, rest = (rest[0], rest[1:]) if ragged else (None, rest)
            pairs = zip(rest[0::2], rest[1::2], strict=False)
            crossed = dict(zip(calls, pairs, strict=False))
            lent = dict(zip(slots, rest[2 * len(calls) :], strict=True))
            return self._run(tokens, at, kept, crossed, lent)

        try:
            recorded = record(step, *given)
        except (RuntimeError, NotImplementedError):  # a layer that looks into its tensors
            return None
        # Once more on these tokens at the end: they are what the caches must hold.
        for tokens in (torch.zeros_like(given[0]), given[0]):
            expected, found = (run(tokens, *given[1:]) for run in (step, recorded))
            if not torch.allclose(found, expected, rtol=1e-4, atol=1e-4):
                return None
        return recorded

    def _run(
        self,
        tokens: Tensor,
        start: Any,
        padding: Tensor | None,
        crossed: dict[int, Any] | None = None,
        lent: dict[int, Tensor] | None = None,
    ) -> Tensor:
        crossed = self.crossed if crossed is None else crossed
        lent = self.lent if lent is None else lent
        context = self._context(Moment(start, None, False, padding), crossed, tokens)
        return run_each(self.plan, context, tokens, lent, self.max_length)

    def _context(self, moment: Moment, crossed: dict[int, Any], tokens: Tensor) -> CacheContext:
        return CacheContext(
            self.plan.specs,
            self.memory,
            moment,
            crossed,
            length=tokens.shape[1],
            max_length=self.max_length,
        )
