"""Decoding on TensorFlow: functions that write into caches held in variables."""

import functools
from typing import Any

import keras
import tensorflow as tf

from kerasattention._keras import flatten_layers, override_calls
from kerasattention.attend.tensors import Tensor
from kerasattention.decoding.backends.products import linear_layers
from kerasattention.decoding.backends.products_tensorflow import loop_products
from kerasattention.decoding.backends.runner import (
    Kept,
    LoopResult,
    LoopState,
    choose_next,
    positions_at,
    traced_extend,
    traced_prefill,
)
from kerasattention.decoding.cache.storage import ArrayStorage, CacheStorage, VariableStorage
from kerasattention.decoding.graph.plan import Plan
from kerasattention.decoding.graph.run import Values, run_full

# XLA reads the weights for one token faster than TensorFlow's own operations, but compiles for
# some seconds. Models with fewer parameters are done before that.
XLA_PARAMETERS = 5_000_000
# The errors of XLA for an operation that it does not know.
_UNCOMPILED = (
    tf.errors.InvalidArgumentError,
    tf.errors.UnimplementedError,
    tf.errors.NotFoundError,
)


class TensorFlowRunner:
    """A `Runner` of graphs; the loop of a large model is compiled by XLA.

    Args:
        plan: How the model is decoded.
        model: The model.
        batch: B.
        max_length: The number of slots of a cache without a window.
    """

    compiles = True

    def __init__(self, plan: Plan, model: keras.Model, batch: int, max_length: int) -> None:
        self.plan, self.batch, self.max_length = plan, batch, max_length
        self.linear = linear_layers(model)
        self.storage = VariableStorage(plan.specs, batch, max_length)
        self._prefill = _traced(self._run_prefill)
        self._extend = _traced(self._run_extend)
        self._decode_loop = _traced(self._run_decode_loop)
        self._compiled_loop = _traced(self._run_compiled_loop, jit_compile=True)
        self._compiles = model.count_params() >= XLA_PARAMETERS and all(
            layer.supports_jit for layer in flatten_layers(model)
        )
        self.reset()

    def reset(self) -> None:
        self.kept: Kept = ({}, {})

    def prefill(self, inputs: Values, count: int, padding: Tensor | None) -> Tensor:
        logits, self.kept = self._prefill(inputs, tf.constant(count), padding)
        return logits

    def full_pass(self, inputs: Values) -> Tensor:
        return run_full(self.plan, inputs)  # a graph of it would serve once

    def extend(
        self,
        tokens: Tensor,
        position: int,
        count: int,
        padding: Tensor | None,
        given: Values | None = None,
    ) -> Tensor:
        real = None if tokens.shape[1] == 1 else tf.constant(count)
        return self._extend(
            self.kept, tokens, tf.constant(position), real, padding, given=given or {}
        )

    def decode_loop(self, state: LoopState) -> LoopResult:
        state = state._replace(
            position=tf.constant(state.position),
            steps=tf.constant(state.steps),
            numbers=tuple(tf.constant(x) for x in state.numbers),
        )
        made, finished, count, failed = self._run_fastest(state)
        return LoopResult(made, finished, int(count), int(failed))

    def _run_fastest(self, state: LoopState) -> Any:
        if self._compiles:
            try:
                return self._compiled_loop(state, self.kept)
            except _UNCOMPILED:  # raised before anything runs
                self._compiles = False
        return self._decode_loop(state, self.kept)

    # Traced -----------------------------------------------------------------------

    def _run_prefill(self, inputs: Values, count: Tensor, padding: Tensor | None) -> Any:
        return traced_prefill(self, self.storage, inputs, count, padding)

    def _run_extend(
        self,
        kept: Kept,
        tokens: Tensor,
        position: Tensor,
        count: Tensor | None,
        padding: Tensor | None,
        storage: CacheStorage | None = None,
        given: Values | None = None,
    ) -> Tensor:
        storage = storage or self.storage
        return traced_extend(self, storage, kept, tokens, position, count, padding, given)

    def _run_decode_loop(self, state: LoopState, kept: Any) -> Any:
        def step(tokens: Tensor, at: Tensor, given: Values, arrays: Any) -> Any:
            logits = self._run_extend(kept, tokens, at, None, state.padding, given=given)
            return logits, arrays

        return self._repeat(state, step, ())[:4]

    def _run_compiled_loop(self, state: LoopState, kept: Any) -> Any:
        """The loop with the caches in its state, where XLA updates them in place."""

        def step(tokens: Tensor, at: Tensor, given: Values, arrays: Any) -> Any:
            storage = ArrayStorage(arrays)
            logits = self._run_extend(kept, tokens, at, None, state.padding, storage, given)
            return logits, storage.arrays

        variables = self.storage.variables
        arrays = [{name: x.value() for name, x in call.items()} for call in variables]
        with override_calls(loop_products(self.linear, self.batch, state.room)):
            *made, arrays = self._repeat(state, step, arrays)
        for call, changed in zip(variables, arrays, strict=True):
            for name, x in changed.items():
                call[name].assign(x)
        return made

    def _repeat(self, state: LoopState, step: Any, arrays: Any) -> Any:
        def goes_on(index: Tensor, tokens: Tensor, finished: Tensor, *_: Any) -> Tensor:
            return tf.logical_and(index < state.steps, tf.logical_not(tf.reduce_all(finished)))

        def decode_one(
            index: Tensor,
            tokens: Tensor,
            finished: Tensor,
            made: Tensor,
            failed: Tensor,
            arrays: Any,
        ) -> Any:
            at = state.position + index
            given = positions_at(state, index)
            logits, arrays = step(tokens[:, None], at, given, arrays)  # (B, V)
            tokens, finished, fails = choose_next(self.plan, state, logits, at, tokens, finished)
            failed = tf.minimum(failed, tf.where(fails, index, state.room))
            here = tf.range(state.room) == index  # (room)
            made = tf.where(here[None], tokens[:, None], made)  # (B, room)
            return index + 1, tokens, finished, made, failed, arrays

        made = tf.zeros((self.batch, state.room), "int32")
        failed = tf.constant(state.room)
        carry = (tf.constant(0), state.tokens, state.finished, made, failed, arrays)
        count, _, finished, made, failed, arrays = tf.while_loop(
            goes_on, decode_one, carry, parallel_iterations=1
        )
        return made, finished, count, failed, arrays


def _traced(method: Any, **options: Any) -> Any:
    """A graph for one runner.

    TensorFlow counts how often a function is traced by its code, and would warn where several
    runners trace a method once each; a partial function counts for itself. Like Keras's own
    graphs these are traced without AutoGraph, which converts the source of all that is called.
    """
    return tf.function(functools.partial(method), autograph=False, **options)
