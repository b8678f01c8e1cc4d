"""A layer's call whose results are computed again for the gradient, as `keras.RematScope` asks."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import keras

from kerasattention._keras import get_keras_mask, is_recomputed, set_keras_mask
from kerasattention.attend.tensors import Tensor

_seed: contextvars.ContextVar[Tensor | None] = contextvars.ContextVar(
    "kerasattention_seed", default=None
)


def seed_of_call() -> Tensor | None:
    """The seed drawn for the layer's call that is running; None where it is to draw its own."""
    return _seed.get()


@contextlib.contextmanager
def _seeded(seed: Tensor | None) -> Iterator[None]:
    token = _seed.set(seed)
    try:
        yield
    finally:
        _seed.reset(token)


def sublayers_scope(layer: keras.layers.Layer) -> contextlib.AbstractContextManager[Any]:
    """Where a layer's sublayers are made and called: they are computed again with it, not twice.

    In a graph of TensorFlow, Keras's projections cannot be computed again by themselves.
    """
    return keras.RematScope(None) if is_recomputed(layer) else contextlib.nullcontext()


class RecomputedCall:
    """A call with its arguments, of which a function of the tensors to differentiate by is made.

    Everything else is bound: JAX would trace a switch such as `training`, and a mask
    that a tensor carries is lost on the way into the function.
    """

    seed: Tensor | None = None

    def __init__(
        self, layer_call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self._call, self._args, self._kwargs = layer_call, args, kwargs
        given = [*args, *kwargs.values()]
        self.tensors = list({id(x): x for x in given if _is_float_tensor(x)}.values())

    def __call__(self, *tensors: Tensor) -> Any:
        new = {id(x): y for x, y in zip(self.tensors, tensors, strict=True)}
        for x, y in zip(self.tensors, tensors, strict=True):
            if get_keras_mask(x) is not None and get_keras_mask(y) is None:
                set_keras_mask(y, get_keras_mask(x))
        args = [new.get(id(x), x) for x in self._args]
        kwargs = {name: new.get(id(x), x) for name, x in self._kwargs.items()}
        with _seeded(self.seed), keras.RematScope(None):
            return self._call(*args, **kwargs)


def _is_float_tensor(x: Any) -> bool:
    return keras.ops.is_tensor(x) and keras.backend.is_float_dtype(
        keras.backend.standardize_dtype(x.dtype)
    )
