"""Calls that are computed again for the gradient, under `keras.RematScope`."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import keras

from kerasattention._keras import get_keras_mask, is_recomputed, set_keras_mask
from kerasattention.attend.dropout import draw_seed
from kerasattention.attend.tensors import Tensor
from kerasattention.layers.context import is_observed
from kerasattention.layers.inputs import arguments_by_name, padding_of

if TYPE_CHECKING:
    from kerasattention.layers.attention import AttentionLayer

_seed: contextvars.ContextVar[Tensor | None] = contextvars.ContextVar(
    "kerasattention_seed", default=None
)


def seed_of_call() -> Tensor | None:
    """The seed drawn for the running call of the layer; None where the call draws its own."""
    return _seed.get()


@contextlib.contextmanager
def _seeded(seed: Tensor | None) -> Iterator[None]:
    token = _seed.set(seed)
    try:
        yield
    finally:
        _seed.reset(token)


def sublayers_scope(layer: keras.layers.Layer) -> contextlib.AbstractContextManager[Any]:
    """The scope in which a layer's sublayers are made: computed again with it, not twice.

    In a graph of TensorFlow, Keras's projections cannot be computed again by themselves.
    """
    return _no_remat() if is_recomputed(layer) else contextlib.nullcontext()


def _no_remat() -> keras.RematScope:
    """A scope whose layers are not recomputed by themselves."""
    return keras.RematScope(None)  # pyright: ignore[reportArgumentType] # its docs list None


class RecomputedCall:
    """A call as a function of its floating-point tensors, which gradients are taken by.

    All other arguments are bound: JAX would trace a flag such as `training`. A mask that a
    tensor carries does not pass into the function, and is set again within it.
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
        with _seeded(self.seed), _no_remat():
            return self._call(*args, **kwargs)


def rematerialize(
    layer: "AttentionLayer",
    keras_call: Callable[..., Any],
    layer_call: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Callable[..., Any]:
    """A layer's call, computed again with the dropout that the output had.

    Args:
        keras_call: The `rematerialized_call()` that Keras's layers inherit.
        layer_call: The call, with its arguments in `args` and `kwargs`.
    """
    if is_observed():  # a context takes part in the call, and needs no gradient
        return layer_call
    call = RecomputedCall(layer_call, args, kwargs)
    recomputed = keras_call(call, *args, **kwargs)
    if recomputed is call:
        return layer_call
    _check_losses(layer)
    given = arguments_by_name(args, kwargs)
    query, query_mask = given["query"], given.get("query_mask")
    if layer.dropout > 0.0 and given.get("training"):
        call.seed = draw_seed(layer._dropout_layer.seed_generator)

    def run(*_: Any, **__: Any) -> Any:
        result = recomputed(*call.tensors)
        output = result[0] if given.get("return_attention_scores") else result
        layer.pass_mask_on(padding_of(layer._fold, query, query_mask), query, output)
        return result

    return run


def _check_losses(layer: "AttentionLayer") -> None:
    if layer.projection_activity_regularizer is not None:
        raise ValueError(
            "`activity_regularizer` and `keras.RematScope` do not go together: the losses "
            "of a call that is computed again have no gradient. Leave one of them out. "
            f"Received: layer {layer.name!r} with {layer.projection_activity_regularizer}"
        )


def _is_float_tensor(x: Any) -> bool:
    return keras.ops.is_tensor(x) and keras.backend.is_float_dtype(
        keras.backend.standardize_dtype(x.dtype)
    )
