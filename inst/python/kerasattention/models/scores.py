"""Collects the attention maps of a trained model while it runs unchanged."""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Any

import keras
import numpy as np

from kerasattention import checks
from kerasattention._keras import flatten_layers
from kerasattention.attend.tensors import Span, Tensor, numpy_of
from kerasattention.layers.attention import AttentionLayer
from kerasattention.layers.context import AttentionContext, attention_context
from kerasattention.models.convert import KERAS_LAYERS, convert_attention
from kerasattention.models.replace import attention_layers


@dataclasses.dataclass(frozen=True)
class AttentionMap:
    """The maps of one layer.

    Attributes:
        layer: Its name.
        weights: (B, N, t, S) float32: the chosen heads and query rows.
        heads: Indices of the heads in `weights`, counted from 0.
        rows: Indices of the query rows.
        self_attention: Whether queries and keys are of the same sequence.
    """

    layer: str
    weights: np.ndarray
    heads: tuple[int, ...]
    rows: tuple[int, ...]
    self_attention: bool


def attention_scores(
    model: keras.Model,
    x: Any,
    layers: Sequence[str | int] | None = None,
    *,
    heads: Sequence[int] | None = None,
    rows: Sequence[int] | None = None,
) -> list[AttentionMap]:
    """The maps of attention layers for an input, in inference.

    The model computes its output as usual. Beside it each layer computes the weights
    of the requested query rows only, so that a few rows of a long context need no
    (T, S) memory.

    Args:
        model: A model with our attention layers, or a Functional or Sequential one
            with Keras's.
        x: Input of the model.
        layers: Names, or indices among the attention layers, counted from 0; all
            by default.
        heads: Indices of heads, counted from 0; all by default.
        rows: Indices of query positions, counted from 0; all by default.

    Returns:
        One `AttentionMap` per layer, in order of call; a layer that is called
        twice has two.

    Raises:
        ValueError: No attention layer in the model, an unknown layer, head or row.
    """
    model = with_our_layers(model)
    chosen = choose_layers(model, layers)
    for layer in chosen:
        checks.indices("heads", () if heads is None else heads, layer.heads.query, layer.name)
    collector = _Collector(chosen, heads, rows)
    with attention_context(collector):
        model(x, training=False)
    if collector.problem is not None:
        raise collector.problem
    return collector.maps


def with_our_layers(model: keras.Model) -> keras.Model:
    """The model, or a copy of it if it has Keras's attention layers."""
    if any(True for _ in attention_layers(model, KERAS_LAYERS)):
        return convert_attention(model)
    return model


def choose_layers(
    model: keras.Model, layers: Sequence[str | int] | None = None
) -> list[AttentionLayer]:
    """Attention layers by name or index, all by default."""
    found = [layer for layer in flatten_layers(model) if isinstance(layer, AttentionLayer)]
    names = [layer.name for layer in found]
    if not found:
        raise ValueError(f"`model` has no attention layer. Its layers: {_names(model.layers)}")
    if layers is None:
        return found
    layers = [layers] if isinstance(layers, (str, int)) else layers
    chosen = []
    for layer in layers:
        known = layer in names if isinstance(layer, str) else 0 <= layer < len(names)
        if not known:
            raise checks.UnknownLayerError("layers", layer, names)
        if isinstance(layer, str) and names.count(layer) > 1:
            raise ValueError(
                "`layers` must name one attention layer each: give the index instead. Received: "
                f"{layer!r}, the name of {names.count(layer)} layers"
            )
        chosen.append(found[names.index(layer) if isinstance(layer, str) else layer])
    return chosen


def layers_by_name(
    model: keras.Model, used: Collection[str] | None = None
) -> dict[str, AttentionLayer]:
    """All attention layers by name.

    Args:
        model: A model with our attention layers.
        used: The names that must be of one layer each; all by default.

    Raises:
        ValueError: Several layers have one of these names, as in nested models.
    """
    layers = choose_layers(model)
    names = [layer.name for layer in layers]
    checked = set(names if used is None else used)
    twice = sorted(name for name in checked if names.count(name) > 1)
    if twice:
        raise ValueError(
            "The heads of attention layers are told by the names of the layers, so these must "
            f"differ. Received: several layers of the names {', '.join(map(repr, twice))}. Make "
            "the model with a `name` for each."
        )
    return dict(zip(names, layers, strict=True))


class _Collector(AttentionContext):
    def __init__(
        self,
        layers: list[AttentionLayer],
        heads: Sequence[int] | None,
        rows: Sequence[int] | None,
    ) -> None:
        self.layers, self.heads, self.rows = layers, heads, rows
        self.maps: list[AttentionMap] = []
        # Raised after the model's call: Keras makes another exception of one within it.
        self.problem: checks.OutOfRangeError | None = None
        self._self_attention = True

    def project(
        self,
        layer: AttentionLayer,
        self_attention: bool,
        compute: Callable[[], tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, Tensor]:
        self._self_attention = self_attention
        return compute()

    def observe(self, layer: AttentionLayer, weights: Callable[[Span | None], Tensor]) -> None:
        if self.problem is not None or not any(layer is chosen for chosen in self.layers):
            return
        heads = range(layer.heads.query) if self.heads is None else self.heads
        try:
            parts = [
                numpy_of(weights(span)).astype("float32")[:, list(heads)]
                for span in _spans(self.rows)
            ]
        except checks.OutOfRangeError as problem:
            self.problem = problem
            return
        array = np.concatenate(parts, axis=2)
        rows = range(array.shape[2]) if self.rows is None else self.rows
        self.maps.append(
            AttentionMap(layer.name, array, tuple(heads), tuple(rows), self._self_attention)
        )


def _spans(rows: Sequence[int] | None) -> list[Span | None]:
    """Runs of consecutive rows, in the order given."""
    if rows is None:
        return [None]
    spans: list[Span | None] = []
    for row in rows:
        last = spans[-1] if spans else None
        if last is not None and last.stop == row:
            spans[-1] = Span(last.start, last.size + 1)
        else:
            spans.append(Span(row, 1))
    return spans


def _names(layers: list[keras.layers.Layer]) -> list[str]:
    return [layer.name for layer in layers]
