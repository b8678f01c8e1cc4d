"""Gives a copied layer its source's quantisation, LoRA, weights and frozen weights."""

from collections.abc import Iterable
from typing import Any

from kerasattention._keras import flatten_layers
from kerasattention.layers.attention import AttentionLayer

Arrays = list[Any]
Pair = tuple[Any, Any]


def set_arrays(source: Any, copy: Any, arrays: Arrays | None) -> None:
    """Gives a built copy its weights, by default those of its source."""
    if arrays is None:
        for theirs, ours in twins(source, copy):
            _adapt(theirs, ours, source.name)
        arrays = source.get_weights()
    if not arrays:
        return
    try:
        copy.set_weights(arrays)
    except ValueError as error:
        raise ValueError(
            f"Layer {source.name!r} ({type(source).__name__}) cannot be copied: a layer of its "
            f"config has other weights. {error} A layer that was changed after it was made (by "
            "quantisation, LoRA or new weights) must have that in its config."
        ) from error


def twins(source: Any, copy: Any) -> list[Pair]:
    """The layers inside of both that belong together, outermost first."""
    theirs, ours = list(flatten_layers(source)), list(flatten_layers(copy))
    if isinstance(copy, AttentionLayer):  # Keras's layer has a softmax more
        named = {layer.name: layer for layer in theirs[1:]}
        parts = [(named[layer.name], layer) for layer in ours[1:] if layer.name in named]
        return [(source, copy), *parts]
    return list(zip(theirs, ours, strict=True)) if len(theirs) == len(ours) else [(source, copy)]


def _adapt(theirs: Any, ours: Any, name: str) -> None:
    """Quantises a part of a copy, or adds LoRA's factors, as it was done to the source.

    The configs of Keras's attention layers contain neither.
    """
    try:
        mode = getattr(theirs, "quantization_mode", None)
        if mode is not None and getattr(ours, "quantization_mode", None) is None:
            ours.quantize(mode, config=getattr(theirs, "quantization_config", None))
        if getattr(theirs, "lora_enabled", False) and not ours.lora_enabled:
            ours.enable_lora(theirs.lora_rank, lora_alpha=theirs.lora_alpha)
    except Exception as error:
        raise ValueError(
            f"Layer {name!r} cannot be copied: its part {theirs.name!r} is quantised or has LoRA, "
            f"and the copy's cannot be made so. {error} Copy the model before that."
        ) from error


def freeze_alike(pairs: Iterable[Pair], leaves: Iterable[Pair]) -> None:
    """Sets `trainable` of copies as it is in the sources: models, layers, parts, weights.

    Args:
        pairs: Layers and models with their copies, a model before its layers.
        leaves: Those of them that are no models.
    """
    for source, copy in pairs:
        copy.trainable = source.trainable
    for source, copy in leaves:
        if _made_frozen(source, copy):
            continue
        for theirs, ours in twins(source, copy):
            ours.trainable = theirs.trainable
    for source, copy in leaves:
        if _made_frozen(source, copy):
            continue
        for theirs, ours in zip(source.weights, copy.weights, strict=True):
            ours.trainable = theirs.trainable


def _made_frozen(source: Any, copy: Any) -> bool:
    """Whether an attention layer was made with `trainable=False`.

    Keras does not pass the flag on to the projections, and trains them. Ours stays frozen.
    """
    return (
        isinstance(copy, AttentionLayer)
        and not source.trainable
        and all(variable.trainable for variable in source.weights)
    )
