"""A copy of a model with some layers exchanged, all other weights kept."""

from collections.abc import Callable, Iterator
from typing import Any

import keras

from kerasattention._keras import ObjectSharingScope

Arrays = list[Any]


def replace_layers(
    model: keras.Model,
    exchange: Callable[[keras.layers.Layer], tuple[keras.layers.Layer, Arrays] | None],
) -> keras.Model:
    """Copies a Functional or Sequential model, nested ones included.

    Args:
        model: The model; it is left as it is.
        exchange: Told each layer; gives None to copy it with its weights, or an
            unbuilt layer of the same inputs and outputs and the arrays for its
            weights.

    Returns:
        The copy, compiled as `model` was, with a fresh optimizer.

    Raises:
        ValueError: A model that is neither Functional nor Sequential.
    """
    check_graph(model)
    arrays: list[tuple[keras.layers.Layer, Arrays]] = []

    def clone(layer: Any) -> Any:
        if not isinstance(layer, keras.layers.Layer):
            return layer  # an operation such as `x + y`, which holds nothing
        exchanged = exchange(layer)
        if exchanged is None:
            new = layer.__class__.from_config(layer.get_config())
            arrays.append((new, layer.get_weights()))
            return new
        arrays.append(exchanged)
        return exchanged[0]

    # Layers that share a position's table share it in the copy too.
    with ObjectSharingScope():
        copy = keras.models.clone_model(model, clone_function=clone, recursive=True)
        if not copy.built and model.built:
            copy.build(model.input_shape)
    for layer, weights in arrays:
        if weights:
            layer.set_weights(weights)
    if model.compiled:
        copy.compile_from_config(model.get_compile_config())
    return copy


def check_graph(model: keras.Model) -> None:
    """Refuses a model whose graph of layers is not known."""
    if not isinstance(model, keras.Sequential) and not is_functional(model):
        raise ValueError(
            "`model` must be a Functional or Sequential model: the layers of a "
            f"subclassed one are known to its own code alone. Received: {type(model)}"
        )


def is_functional(model: keras.Model) -> bool:
    # A subclass of keras.Model that is given inputs and outputs is Functional too.
    return hasattr(model, "operations") and bool(getattr(model, "inputs", None))


def attention_layers(model: keras.Model, kinds: tuple[type, ...]) -> Iterator[Any]:
    """The attention layers of a model in order of call, nested models included."""
    for layer in model.layers:
        if isinstance(layer, kinds):
            yield layer
        elif isinstance(layer, keras.Model):
            yield from attention_layers(layer, kinds)
