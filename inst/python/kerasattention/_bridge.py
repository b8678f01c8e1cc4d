"""R functions as initializers, regularizers and constraints, and how they are saved.

Keras copies such objects by their config (each projection gets its own initializer)
and saves that config in `.keras` files. An R function cannot be part of a config: the
config holds a key, and the function is found by its key within the session. In another
session it is not there: the model loads, and predicts, but

- an initializer fills new weights with NaN, which the saved weights then replace;
- a regularizer of weights and a constraint, which only training and evaluation use,
  are an error when they are used;
- a regularizer of activity, which Keras computes in inference too, is NaN.
"""

import threading
import uuid
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from kerasattention.attend.tensors import Tensor, numpy_of, tensor_of

_functions: dict[str, Callable[..., Any]] = {}


class RFunction:
    """An R function and its key.

    Args:
        argument: The layer's argument that it was given for.
        source: The function's text, for messages.
        key: Finds the function in the session that made it.
    """

    def __init__(self, argument: str, source: str, key: str) -> None:
        self.argument = argument
        self.source = source
        self.key = key

    @property
    def function(self) -> Callable[..., Any] | None:
        return _functions.get(self.key)

    def required_function(self) -> Callable[..., Any]:
        if self.function is None:
            raise RuntimeError(
                f"The layer's `{self.argument}` was an R function of another session, "
                f"`{self.source}`, and is not saved with the model. To train or evaluate, "
                "build the model with its R code and load only its weights."
            )
        return self.function

    def get_config(self) -> dict[str, str]:
        return {"argument": self.argument, "source": self.source, "key": self.key}


@keras.saving.register_keras_serializable(package="kerasattention")
class RInitializer(RFunction, keras.initializers.Initializer):
    """Calls an R function of (shape, dtype)."""

    def __call__(self, shape: tuple[int, ...], dtype: str | None = None, **_: Any) -> Any:
        dtype = keras.backend.standardize_dtype(dtype)
        if self.function is None:
            return ops.full(shape, float("nan"), dtype=dtype)
        value = tensor_of(self.function(list(shape), dtype), dtype)
        if tuple(value.shape) != tuple(shape):
            raise ValueError(
                f"The R function given as `{self.argument}` must return an array of shape "
                f"{tuple(shape)}. Received: shape {tuple(value.shape)}"
            )
        return value


@keras.saving.register_keras_serializable(package="kerasattention")
class RRegularizer(RFunction, keras.regularizers.Regularizer):
    """Calls an R function of a tensor that returns the penalty."""

    def __call__(self, x: Any) -> Any:
        if self.function is None and self.argument == "activity_regularizer":
            return ops.convert_to_tensor(float("nan"), dtype=x.dtype)
        penalty = tensor_of(self.required_function()(x), x.dtype)
        if any(size != 1 for size in penalty.shape):
            raise ValueError(
                f"The R function given as `{self.argument}` must return one number. "
                f"Received: shape {tuple(penalty.shape)}"
            )
        return ops.reshape(penalty, ())


@keras.saving.register_keras_serializable(package="kerasattention")
class RConstraint(RFunction, keras.constraints.Constraint):
    """Calls an R function of a tensor that returns the constrained one."""

    def __call__(self, w: Any) -> Any:
        return ops.convert_to_tensor(self.required_function()(w), dtype=w.dtype)


_kinds = {
    "initializer": RInitializer,
    "regularizer": RRegularizer,
    "constraint": RConstraint,
}


def keras_function(
    kind: str, argument: str, function: Callable[..., Any], source: str
) -> RFunction:
    """The Keras object of an R function.

    Args:
        kind: "initializer", "regularizer" or "constraint".
        argument: The layer's argument.
        function: The R function.
        source: Its text.
    """
    key = uuid.uuid4().hex
    _functions[key] = function
    return _kinds[kind](argument, source, key)


@keras.saving.register_keras_serializable(package="kerasattention")
class RMaskFunction(RFunction):
    """Calls an R function of the positions of queries and keys, for a `MaskFunction`."""

    def __call__(self, queries: Any, keys: Any) -> Any:
        import numpy as np  # not at the top: a Keras that cannot be loaded is to be the first error

        function = self.required_function()
        self._check_thread()
        shape: Tensor = ops.equal(queries - queries, keys - keys)  # (B|1, 1, t, s)
        if not _is_known(queries):
            # Numbers of R are doubles, which TensorFlow does not combine with integers.
            zeros = ops.cast(shape, "float32") * 0.0  # (B|1, 1, t, s)
            return function(*(ops.cast(x, "float32") + zeros for x in (queries, keys)), False)
        q, k = (np.broadcast_to(numpy_of(x), tuple(shape.shape))[:, 0] for x in (queries, keys))
        if q.shape[0] == 1:
            q, k = q[0], k[0]  # (t, s)
        visible = np.asarray(function(q, k, True))
        return ops.convert_to_tensor(visible.astype(bool).reshape(tuple(shape.shape)))

    def _check_thread(self) -> None:
        """Refuses a thread of the backend, such as torch's for the gradients of a GPU.

        R runs in its main thread, which waits for the gradient: the call would never return.
        """
        thread = threading.current_thread()
        if isinstance(thread, threading._DummyThread):  # not made by Python
            raise RuntimeError(
                f"The R function of a mask, `{self.source}`, was called in a thread of the backend "
                f"({thread.name}), which R cannot run in: torch computes gradients on a GPU in "
                "such a thread. Write the rule with mask_causal(), mask_window(), mask_chunk(), "
                "mask_dilated() or mask_blocks() instead, or train on the CPU or with another "
                "backend."
            )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RMaskFunction) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        return self.source

    @classmethod
    def from_config(cls, config: dict[str, str]) -> "RMaskFunction":
        return cls(**config)


def _is_known(x: Any) -> bool:
    """Whether the numbers of a tensor can be read now."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.executing_eagerly()
    if keras.backend.backend() == "jax":
        from jax.core import Tracer

        return not isinstance(x, Tracer)
    if keras.backend.backend() == "torch":
        import torch

        return not torch.compiler.is_compiling()
    return True


def mask_function(function: Callable[..., Any], source: str) -> RMaskFunction:
    """The function of a `MaskFunction` that calls an R function, whose text is `source`."""
    key = uuid.uuid4().hex
    _functions[key] = function
    return RMaskFunction("mask", source, key)
