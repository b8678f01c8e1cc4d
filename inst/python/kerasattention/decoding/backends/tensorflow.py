"""Running a plan on TensorFlow: functions that write caches held in variables."""

import functools
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from kerasattention._keras import flatten_layers, get_keras_mask, set_keras_mask
from kerasattention.attend.tensors import Tensor
from kerasattention.decoding.backends.kernels_tensorflow import FlatKernels, projections_of
from kerasattention.decoding.backends.tied_tensorflow import ENOUGH_STEPS, tied_embeddings
from kerasattention.decoding.cache.context import CacheContext, Memory, Moment
from kerasattention.decoding.cache.storage import ArrayMemory, VariableMemory
from kerasattention.decoding.graph.plan import Calls, Plan, as_logits, run_each, run_once, run_whole
from kerasattention.decoding.sampling import are_unusable, choose_tokens

Lent = dict[int, tuple[Tensor, Tensor | None]]

# XLA reads the weights for one token faster than TensorFlow's own operations, but compiles for
# some seconds. Models with fewer parameters are done before that.
XLA_PARAMETERS = 5_000_000
# What XLA says of an operation that it does not know.
_UNCOMPILED = (
    tf.errors.InvalidArgumentError,
    tf.errors.UnimplementedError,
    tf.errors.NotFoundError,
)


class Loop(NamedTuple):
    """What a loop over new tokens begins with.

    Attributes:
        kind: How tokens are chosen; a loop is traced for each kind.
        room: Columns of the result.
        tokens: (B), the last one of each row.
        start: Index of those.
        steps: How many tokens to make at most.
        padding: None or (B), how many indices at the start of each row are padding.
        finished: (B), the rows that make no more tokens.
        stop: Tokens that finish a row.
        numbers: Temperature and the like, of this kind.
    """

    kind: Any
    room: int
    tokens: Tensor
    start: Tensor
    steps: Tensor
    padding: Tensor | None
    finished: Tensor
    stop: Tensor
    numbers: tuple[Tensor, ...]


class Runner:
    """Holds the caches of one decoder and runs prompts, steps and loops.

    Args:
        plan: How the model is decoded.
        model: The model.
        batch: B.
        max_length: Slots of a cache without a window.
    """

    compiles = True

    def __init__(self, plan: Plan, model: keras.Model, batch: int, max_length: int) -> None:
        self.plan, self.batch, self.max_length = plan, batch, max_length
        self.projections = projections_of(model)
        self.memory = VariableMemory(plan.specs, batch, max_length)
        self._prompt = _traced(self._run_prompt)
        self._after = _traced(self._run_after)
        self._loop = _traced(self._run_loop)
        self._compiled_loop = _traced(self._run_compiled_loop, jit_compile=True)
        layers = flatten_layers(model)
        self._compiles = model.count_params() >= XLA_PARAMETERS and all(
            layer.supports_jit for layer in layers
        )
        self.reset()

    def reset(self) -> None:
        self.crossed: dict[int, Any] = {}
        self.lent: Lent = {}

    def prompt(self, inputs: dict[int, Tensor], count: int, padding: Tensor | None) -> Tensor:
        """Logits (B, V) after a prompt into empty caches."""
        logits, self.crossed, self.lent = self._prompt(inputs, tf.constant(count), padding)
        return logits

    def whole(self, inputs: dict[int, Tensor]) -> Tensor:
        """The model's output (B, T, V) without caches; a graph of it would serve once."""
        return run_whole(self.plan, inputs)

    def after(self, tokens: Tensor, start: int, count: int, padding: Tensor | None) -> Tensor:
        """Logits (B, V) after tokens (B, t) that follow others."""
        count = None if tokens.shape[1] == 1 else tf.constant(count)
        return self._after(self.crossed, self.lent, tokens, tf.constant(start), count, padding)

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
        begin = Loop(
            kind,
            room,
            tokens,
            tf.constant(start),
            tf.constant(steps),
            padding,
            finished,
            stop,
            tuple(tf.constant(x) for x in numbers),
        )
        made, finished, count, failed = self._run_fastest(begin)
        return made, finished, int(count), int(failed)

    def _run_fastest(self, begin: Loop) -> Any:
        if self._compiles:
            try:
                return self._compiled_loop(begin, self.crossed, self.lent)
            except _UNCOMPILED:  # it says so before anything runs
                self._compiles = False
        return self._loop(begin, self.crossed, self.lent)

    def _run_prompt(self, inputs: dict[int, Tensor], count: Tensor, padding: Tensor | None) -> Any:
        plan, crossed = self.plan, {}
        tokens = inputs[plan.tokens]
        lent = run_once(plan, inputs)
        context = self._context(Moment(0, count, True, padding), crossed, tokens)
        logits = run_each(plan, context, tokens, lent, self.max_length)
        return logits, crossed, {slot: (x, get_keras_mask(x)) for slot, x in lent.items()}

    def _run_after(
        self,
        crossed: Any,
        lent: Lent,
        tokens: Tensor,
        start: Tensor,
        count: Tensor | None,
        padding: Tensor | None,
        memory: Memory | None = None,
        kernels: FlatKernels | None = None,
        calls: Calls | None = None,
    ) -> Tensor:
        moment = Moment(start, count, False, padding)
        context = self._context(moment, crossed, tokens, memory, kernels)
        return run_each(self.plan, context, tokens, _with_masks(lent), self.max_length, calls)

    def _run_loop(self, begin: Loop, crossed: Any, lent: Lent) -> Any:
        def after(tokens: Tensor, at: Tensor, arrays: Any) -> Any:
            return self._run_after(crossed, lent, tokens, at, None, begin.padding), arrays

        return self._repeat(begin, after, ())[:4]

    def _run_compiled_loop(self, begin: Loop, crossed: Any, lent: Lent) -> Any:
        """The same with the caches as the loop's state: XLA changes those in place."""
        kernels = FlatKernels(self.projections)
        calls = {}
        if self.batch > 1 and begin.room >= ENOUGH_STEPS:
            calls = tied_embeddings(x.operation for x in self.plan.each)

        def after(tokens: Tensor, at: Tensor, arrays: Any) -> Any:
            memory = ArrayMemory(arrays)
            given = (crossed, lent, tokens, at, None, begin.padding)
            return self._run_after(*given, memory, kernels, calls), memory.arrays

        held = [{name: x.value() for name, x in call.items()} for call in self.memory.variables]
        made, finished, count, failed, held = self._repeat(begin, after, held)
        for call, arrays in enumerate(held):
            for name, x in arrays.items():
                self.memory.replace(call, name, x)
        return made, finished, count, failed

    def _repeat(self, begin: Loop, after: Any, arrays: Any) -> Any:
        """The loop: `after` gives logits and arrays from tokens (B, 1), their index and arrays."""

        def wanted(index: Tensor, tokens: Tensor, finished: Tensor, *_: Any) -> Tensor:
            return tf.logical_and(index < begin.steps, tf.logical_not(tf.reduce_all(finished)))

        def one(
            index: Tensor,
            tokens: Tensor,
            finished: Tensor,
            made: Tensor,
            failed: Tensor,
            arrays: Any,
        ) -> Any:
            at = begin.start + index
            logits, arrays = after(tokens[:, None], at, arrays)
            logits = as_logits(self.plan, logits)
            fails = tf.reduce_any(are_unusable(logits))
            failed = tf.minimum(failed, tf.where(fails, index, begin.room))
            chosen = choose_tokens(logits, begin.kind, begin.numbers, at + 1, begin.padding)
            chosen = tf.where(finished, tokens, chosen)
            stopped = tf.reduce_any(chosen[:, None] == begin.stop[None], axis=1)
            here = tf.range(begin.room) == index
            made = tf.where(here[None], chosen[:, None], made)
            return index + 1, chosen, tf.logical_or(finished, stopped), made, failed, arrays

        made = tf.zeros((self.batch, begin.room), "int32")
        failed = tf.constant(begin.room)
        state = (tf.constant(0), begin.tokens, begin.finished, made, failed, arrays)
        count, _, finished, made, failed, arrays = tf.while_loop(
            wanted, one, state, parallel_iterations=1
        )
        return made, finished, count, failed, arrays

    def _context(
        self,
        moment: Moment,
        crossed: Any,
        tokens: Tensor,
        memory: Memory | None = None,
        kernels: FlatKernels | None = None,
    ) -> CacheContext:
        return CacheContext(
            self.plan.specs,
            self.memory if memory is None else memory,
            moment,
            crossed,
            length=tokens.shape[1],
            max_length=self.max_length,
            apply=None if kernels is None else kernels.apply,
        )


def _traced(method: Any, **options: Any) -> Any:
    """A graph of a runner's own.

    TensorFlow counts how often a function is traced by its code, and would warn where several
    runners trace a method once each; a partial function counts for itself.
    """
    return tf.function(functools.partial(method), **options)


def _with_masks(lent: Lent) -> dict[int, Tensor]:
    for x, mask in lent.values():
        if mask is not None:
            set_keras_mask(x, mask)
    return {slot: x for slot, (x, _) in lent.items()}
