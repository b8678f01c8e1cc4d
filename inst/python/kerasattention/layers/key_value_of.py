"""Keys and values that a layer computes once, and that others use: the option `key_value_of`.

In a graph the layer that uses them is called with the output of the layer that computes them, so
that copies and files of the model have the connection. The keys and values of a call travel with
that output: they are an attribute of the tensor, as Keras's masks are, and end with it.
"""

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import keras

from kerasattention._keras import (
    get_tensor_attribute,
    is_recomputed,
    producer_of,
    set_tensor_attribute,
)
from kerasattention.attend.tensors import Tensor, is_static
from kerasattention.layers.axes import AxisFold
from kerasattention.layers.inputs import arguments_by_name

if TYPE_CHECKING:
    from kerasattention.layers.attention import AttentionLayer

_NAME = "_kerasattention_key_value"
SOURCE = "key_value_from"


@dataclasses.dataclass(frozen=True, eq=False)
class KeyValue:
    """The keys and values of one call of a layer, with norms and positions applied.

    Keras leaves such an argument alone.

    Attributes:
        layer: Name of the layer.
        fold: The axes that it attends over.
        key: (B', S, K, H).
        value: (B', S, K, Hv).
    """

    layer: str
    fold: AxisFold
    key: Tensor
    value: Tensor


# Making them -----------------------------------------------------------------------------------

_call: contextvars.ContextVar["list[KeyValue] | None"] = contextvars.ContextVar(
    "kerasattention_key_value", default=None
)


def keep_key_value(layer: "AttentionLayer", key: Tensor, value: Tensor) -> None:
    """Keeps the keys and values of the running call for its output."""
    kept = _call.get()
    if kept is not None:
        kept.append(KeyValue(layer.name, layer.fold, key, value))


@contextlib.contextmanager
def _keeping() -> Iterator[list[KeyValue]]:
    kept: list[KeyValue] = []
    token = _call.set(kept)
    try:
        yield kept
    finally:
        _call.reset(token)


def call_with_key_value(
    layer: "AttentionLayer", call: Callable[..., Any], args: Any, kwargs: Any
) -> Any:
    """The result of a layer's call, whose output carries the keys and values."""
    refuse_recomputed(layer)
    with _keeping() as kept:
        result = call(*args, **kwargs)
    output = result[0] if isinstance(result, tuple) else result
    if kept and not keras.backend.is_keras_tensor(output):
        set_tensor_attribute(output, _NAME, kept[0])
    return result


# Using them ------------------------------------------------------------------------------------


def name_of_source(name: str, source: Any, layer: "AttentionLayer") -> str | None:
    """The value of the option to keep: the name of the layer, which is told to share.

    A config has the name only; the graph has the connection.
    """
    if source is None:
        return None
    if layer.value_norm:
        raise ValueError(
            f"`value_norm` is an option of the layer that computes the values, `{name}`. "
            f"Received: value_norm={layer.value_norm!r}"
        )
    if isinstance(source, str):
        return source
    if not hasattr(source, "share_key_value"):
        raise ValueError(
            f"`{name}` must be `None` or an attention layer of kerasattention. "
            f"Received: {name}={source!r}"
        )
    source.share_key_value(layer)
    return source.name


def refuse_source(layer: "AttentionLayer", given: dict[str, Any]) -> None:
    """Refuses keys and values for a layer that computes them itself."""
    if given.get(SOURCE) is not None:
        raise ValueError(
            f"`{SOURCE}` is for layers with `key_value_of`, which layer {layer.name!r} was made "
            "without."
        )


def refuse_recomputed(layer: "AttentionLayer") -> None:
    """Refuses layers in a `keras.RematScope`, of whose calls only the output is seen outside."""
    if is_recomputed(layer):
        raise ValueError(
            "`key_value_of` and `keras.RematScope` do not go together: the keys and values of a "
            f"call that is computed again are not kept. Received: layer {layer.name!r}"
        )


def source_of_call(layer: "AttentionLayer", given: dict[str, Any]) -> Any:
    """The keys and values that a call with these arguments uses.

    In a graph it is the symbolic output of the layer that computes them.

    Raises:
        ValueError: The other layer was not called, or on another input.
    """
    refuse_recomputed(layer)
    for name in ("value", "key"):
        if given.get(name) is not None and given[name] is not given["query"]:
            raise ValueError(
                f"`{name}` must be left out: layer {layer.name!r} uses the keys and values of "
                f"layer {layer.key_value_of!r}."
            )
    source = given.get(SOURCE)
    if isinstance(source, KeyValue):
        return source
    if keras.backend.is_keras_tensor(given["query"]):
        return _symbolic_source(layer, given["query"], source)
    found = None if source is None else get_tensor_attribute(source, _NAME)
    _check_carried(layer, found)
    return found


def _check_carried(layer: "AttentionLayer", found: KeyValue | None) -> None:
    source = layer.key_value_of
    if found is None:
        raise _not_carried(layer)
    if found.layer != source:
        raise ValueError(
            f"`{SOURCE}` of layer {layer.name!r} must be the output of layer {source!r}. "
            f"Received: the output of layer {found.layer!r}"
        )


def _not_carried(layer: "AttentionLayer") -> ValueError:
    return ValueError(
        f"Layer {layer.name!r} uses the keys and values of layer {layer.key_value_of!r}: outside "
        f"of a Functional or Sequential model give `{SOURCE}=`, the output of that layer in the "
        "same call. Only self-attention has keys and values to share."
    )


def shared_heads(layer: "AttentionLayer", source: KeyValue | None, query: Tensor) -> KeyValue:
    """The keys and values of another layer, whose tokens must be those of the query."""
    if source is None:  # `TimeDistributed` calls `call()` itself
        raise _not_carried(layer)
    rows, length = math.prod(layer.fold.batches(query)), layer.fold.length(query)
    sizes = tuple(source.key.shape[:2])
    same = not is_static(rows, length, *sizes) or sizes == (rows, length)
    if source.fold != layer.fold or not same:
        raise ValueError(
            f"Layers {source.layer!r} and {layer.name!r} must have the same tokens and attend "
            f"over the same axes. Received: an input {tuple(query.shape)} of {layer.name!r}, and "
            f"keys {tuple(source.key.shape)} of {source.layer!r}"
        )
    return source


def _symbolic_source(layer: "AttentionLayer", query: Any, source: Any) -> Any:
    """The output of the other layer that a call's query depends on, checked."""
    if source is None:
        source = _only_call(layer, query)
    operation, arguments = producer_of(source)
    if getattr(operation, "name", None) != layer.key_value_of:
        raise ValueError(
            f"`{SOURCE}` of layer {layer.name!r} must be the output of layer "
            f"{layer.key_value_of!r}. Received: the output of "
            f"{getattr(operation, 'name', operation)!r}"
        )
    if not hasattr(operation, "share_key_value"):
        raise ValueError(
            f"Layer {layer.key_value_of!r} is no attention layer of kerasattention, so layer "
            f"{layer.name!r} cannot use its keys and values."
        )
    given = arguments_by_name(*arguments)
    others = [given.get(name) for name in ("value", "key")]
    if any(x is not None and x is not given["query"] for x in others):
        raise ValueError(
            f"Layer {layer.key_value_of!r} attends to another sequence than its query. Layer "
            f"{layer.name!r} can use the keys and values of a self-attention only."
        )
    lengths = tuple(query.shape[:-1]), tuple(given["query"].shape[:-1])
    if any(None not in sizes and sizes[0] != sizes[1] for sizes in zip(*lengths, strict=False)):
        raise ValueError(
            f"Layers {layer.key_value_of!r} and {layer.name!r} must have the same tokens. "
            f"Received: inputs {tuple(given['query'].shape)} and {tuple(query.shape)}"
        )
    operation.share_key_value(layer)
    return source


def _only_call(layer: "AttentionLayer", query: Any) -> Any:
    """The output of the one call of the other layer that a symbolic query depends on."""
    found, waiting, seen = {}, [query], set()
    while waiting:
        x = waiting.pop()
        if id(x) in seen or producer_of(x) is None:
            continue
        seen.add(id(x))
        operation, (args, kwargs) = producer_of(x)
        if getattr(operation, "name", None) == layer.key_value_of and is_attention(operation):
            found[id(x)] = x
        waiting += [
            y for y in keras.tree.flatten((args, kwargs)) if keras.backend.is_keras_tensor(y)
        ]
    if len(found) != 1:
        times = "is not" if not found else f"is called {len(found)} times"
        raise ValueError(
            f"Layer {layer.name!r} uses the keys and values of layer {layer.key_value_of!r}, which "
            f"{times} among the layers that its query comes from. Call that layer first, in the "
            f"same model, or give its output as `{SOURCE}=`."
        )
    return next(iter(found.values()))


def is_attention(operation: Any) -> bool:
    return hasattr(operation, "share_key_value")
