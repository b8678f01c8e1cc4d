"""Copies a model with some layers replaced; keeps weights, and which are frozen."""

import inspect
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import keras

from kerasattention._keras import ObjectSharingScope, flatten_layers, lambda_output_shape
from kerasattention.models.alike import Arrays, freeze_alike, set_arrays

Layer: TypeAlias = keras.layers.Layer


def replace_layers(
    model: keras.Model,
    wanted: Callable[[Layer], bool],
    exchange: Callable[[Layer], tuple[Layer, Arrays | None]],
) -> keras.Model:
    """Copies a Functional or Sequential model, nested ones and `TimeDistributed` included.

    Args:
        model: The model; it is left as it is.
        wanted: Whether a layer is to be exchanged. All others are copied.
        exchange: Gives for such a layer an unbuilt one of the same inputs and outputs, and
            the arrays for its weights; None for the layer's own.

    Returns:
        The copy, compiled as `model` was, with a fresh optimizer.

    Raises:
        ValueError: A model that is neither Functional nor Sequential, a layer that cannot be
            copied, a layer to be exchanged where that is impossible.
    """
    check_graph(model)
    copier = _Copier(wanted, exchange)
    # Layers that share a position's table share it in the copy too.
    with ObjectSharingScope():
        copy = copier.clone(model)
    copier.finish()
    return copy


class _Copier:
    """Copies layer by layer and records the copy of each.

    Attributes:
        pairs: Each layer and model with its copy, the parts of a model before it.
        arrays: The weights of those exchanged for layers with other ones, by id.
    """

    def __init__(self, wanted: Callable[[Layer], bool], exchange: Callable[[Layer], Any]) -> None:
        self.wanted, self.exchange = wanted, exchange
        self.pairs: dict[int, tuple[Any, Any]] = {}
        self.arrays: dict[int, Arrays | None] = {}

    def clone(self, layer: Any) -> Any:
        if not isinstance(layer, Layer):
            return layer  # an operation such as `x + y`, which holds nothing
        if id(layer) not in self.pairs:
            self.pairs[id(layer)] = (layer, self._copy(layer))
        return self.pairs[id(layer)][1]

    def _copy(self, layer: Layer) -> Layer:
        if _is_graph(layer):
            copy = keras.models.clone_model(layer, clone_function=self.clone)
            if not copy.built and layer.built:
                copy.build(layer.input_shape)
            return copy
        if self.wanted(layer):
            copy, self.arrays[id(layer)] = self.exchange(layer)
            return copy
        if type(layer) is keras.layers.TimeDistributed:
            config = layer.get_config()
            config.pop("layer")
            return type(layer)(self.clone(layer.layer), **config)
        self._check_inside(layer)
        return _copy_of(layer)

    def _check_inside(self, layer: Layer) -> None:
        """Refuses a layer of which only its own code knows how its parts are made."""
        for part in [*flatten_layers(layer, include_self=False), *_seen_by_function(layer)]:
            if self.wanted(part):
                raise ValueError(
                    f"Layer {part.name!r} ({type(part).__name__}) stands inside of "
                    f"{layer.name!r} ({type(layer).__name__}), whose code makes it: it cannot be "
                    "exchanged from outside. Make the layer with kerasattention's attention and "
                    "the heads that you want, or build the model from Functional parts."
                )
        for part in flatten_layers(layer):
            if not part.built and not _is_known(part):
                raise ValueError(
                    f"Layer {part.name!r} ({type(part).__name__}) is not built, so it is not "
                    "known whether it has attention layers. Build the model before, with "
                    "`model.build(input_shape)` or by a call."
                )

    def finish(self) -> None:
        """Sets weights, flags and compilation, which need the copies built."""
        # A model, or a `TimeDistributed`, has no weights but those of its parts.
        leaves = [pair for pair in self.pairs.values() if not _has_pairs(pair[0])]
        for source, copy in leaves:
            set_arrays(source, copy, self.arrays.get(id(source)))
        # The whole before its parts: a model's flag is set for all of its layers.
        freeze_alike(list(reversed(self.pairs.values())), leaves)
        for source, copy in self.pairs.values():
            if isinstance(source, keras.Model) and source.compiled and _is_graph(source):
                copy.compile_from_config(source.get_compile_config())


def _copy_of(layer: Layer) -> Layer:
    try:
        if isinstance(layer, keras.layers.Lambda):
            return _copy_of_lambda(layer)
        with warnings.catch_warnings():
            # Keras warns of code in configs, which is replaced here by the function.
            warnings.filterwarnings("ignore", "The object being serialized includes a `lambda`")
            config = layer.get_config()
        for name in config:
            # A config has a function's name, which may be unknown, or its code, which Keras
            # refuses to run.
            if inspect.isfunction(getattr(layer, name, None)):
                config[name] = getattr(layer, name)
        return layer.__class__.from_config(config)
    except Exception as error:
        reason = str(error).split("Exception encountered: ")[-1]
        raise ValueError(
            f"Layer {layer.name!r} ({type(layer).__name__}) cannot be copied: {reason}. Its "
            "`get_config()` must hold what its constructor takes, and the constructor must take "
            "`name`, `trainable` and `dtype`."
        ) from error


def _copy_of_lambda(layer: keras.layers.Lambda) -> Layer:
    """A layer of the same function, which needs no code from a config."""
    return type(layer)(
        layer.function,
        output_shape=lambda_output_shape(layer),
        mask=layer.mask,
        arguments=dict(layer.arguments),
        name=layer.name,
        trainable=layer.trainable,
        dtype=layer.dtype_policy,
    )


def _seen_by_function(layer: Layer) -> list[Layer]:
    """Layers that the function of a `Lambda` calls but the model does not list."""
    if not isinstance(layer, keras.layers.Lambda) or not inspect.isfunction(layer.function):
        return []
    seen = inspect.getclosurevars(layer.function)
    values = [*seen.nonlocals.values(), *seen.globals.values()]
    layers = [value for value in values if isinstance(value, Layer)]
    return [part for value in layers for part in flatten_layers(value)]


def _is_known(layer: Layer) -> bool:
    """Whether building the layer makes no attention layer: Keras's own do not."""
    return type(layer).__module__.split(".")[0] in ("keras", "kerasattention")


def check_graph(model: keras.Model) -> None:
    """Refuses a model whose graph of layers is not known."""
    if not _is_graph(model):
        raise ValueError(
            "`model` must be a Functional or Sequential model: the layers of a "
            f"subclassed one are known only to its own code. Received: {type(model)}"
        )


def _is_graph(layer: Layer) -> bool:
    return isinstance(layer, keras.Sequential) or is_functional(layer)


def _has_pairs(layer: Layer) -> bool:
    return _is_graph(layer) or type(layer) is keras.layers.TimeDistributed


def is_functional(model: Layer) -> bool:
    # A subclass of keras.Model that is given inputs and outputs is Functional too.
    return (
        isinstance(model, keras.Model)
        and hasattr(model, "operations")
        and bool(getattr(model, "inputs", None))
    )


def attention_layers(model: keras.Model, kinds: tuple[type, ...]) -> Iterator[Any]:
    """The attention layers of a model, however deep."""
    for layer in flatten_layers(model):
        if isinstance(layer, kinds):
            yield layer
