"""Keeps a model's variables on JAX when an interrupt ends `fit()`, `evaluate()` or `predict()`.

Keras's trainer takes the values out of the variables, donates them to the compiled step and puts
the step's results back at the end of an epoch. An interrupt in between left the variables without
values, or with values that the step had consumed: the model was lost. Models with an attention
layer of this package keep their variables: an interrupt waits until the step has ended, a step
that fails gives its inputs back, and the values are put back however the call ends.
"""

import functools
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

import keras

from kerasattention._keras import (
    attach_jax_state,
    change_jax_trainer,
    flatten_layers,
    store_jax_state,
)
from kerasattention.layers.attention import AttentionLayer

Step = Callable[[Any, Iterator[Any]], tuple[Any, Any]]


def keep_variables() -> None:
    """Changes Keras's trainer of JAX, once."""
    if keras.backend.backend() == "jax":
        change_jax_trainer(_keeping_steps, _ending_in_sync)


def _keeping_steps(make_function: Callable[..., Step]) -> Callable[..., Step]:
    @functools.wraps(make_function)
    def make(model: keras.Model, *args: Any, **kwargs: Any) -> Step:
        step = make_function(model, *args, **kwargs)
        # Over several devices a batch can fail that does not divide over them.
        is_kept = keras.distribution.distribution() is not None
        if not is_kept and not any(isinstance(x, AttentionLayer) for x in flatten_layers(model)):
            return step
        return functools.partial(_run_step, model, step)

    return make


def _ending_in_sync(method: Callable[..., Any]) -> Callable[..., Any]:
    """`fit()` does so in Keras."""

    @functools.wraps(method)
    def run(model: keras.Model, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(model, *args, **kwargs)
        finally:
            model.jax_state_sync()

    return run


def _run_step(model: keras.Model, step: Step, state: Any, iterator: Iterator[Any]) -> Any:
    data = _Postponed(iterator)
    try:
        with data:
            result = step(state, data)
            state = result[1]
            # The trainer's own note would come too late for an interrupt in between.
            store_jax_state(model, state)
    except StopIteration:  # the end of the data
        raise
    except BaseException:
        attach_jax_state(model, state)
        raise
    return result


class _Postponed:
    """Postpones SIGINT to the end of a `with` block. Only the main thread gets it.

    Also the iterator over the step's data. The wait for the first batch can be interrupted, since
    the state is not consumed yet. It is not a generator: Python ignores an interrupt while it
    ends one.
    """

    def __init__(self, iterator: Iterator[Any]) -> None:
        self._iterator, self._is_first = iterator, True
        self._handler: Any = None
        self._arrived: list[tuple[int, FrameType | None]] = []

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        handler = signal.getsignal(signal.SIGINT)
        if callable(handler):  # else ignored, or not Python's
            self._handler = handler
            self._postpone()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._handle()

    def __iter__(self) -> "_Postponed":
        return self

    def __next__(self) -> Any:
        if not self._is_first:
            return next(self._iterator)
        self._is_first = False
        self._handle()
        try:
            return next(self._iterator)
        finally:
            self._postpone()

    def _postpone(self) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, lambda *received: self._arrived.append(received))

    def _handle(self) -> None:
        if self._handler is None:
            return
        signal.signal(signal.SIGINT, self._handler)
        if self._arrived:
            self._handler(*self._arrived.pop())
