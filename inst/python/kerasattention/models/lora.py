"""Low-rank adaptation of attention projections (Hu et al. 2021, https://arxiv.org/abs/2106.09685)."""

import math
from collections.abc import Sequence

import keras

from kerasattention import checks
from kerasattention._keras import flatten_layers, has_sublayers
from kerasattention.attend.tensors import sizes_of
from kerasattention.layers.attention import AttentionLayer
from kerasattention.models.scores import choose_layers

PROJECTIONS = ("query", "key", "value", "output", "gate")


def enable_lora(
    model: keras.Model,
    rank: int,
    *,
    alpha: float | None = None,
    projections: Sequence[str] = ("query", "value"),
    layers: Sequence[str | int] | None = None,
) -> keras.Model:
    """Freezes a model except for low-rank factors beside its attention kernels.

    The factors are Keras's own (`EinsumDense.enable_lora`): saved with the model,
    and merged into the kernels where weights are exported.

    Args:
        model: A built model with our attention layers; it is changed.
        rank: Rank of the factors.
        alpha: Scale of their product, alpha / rank; by default `rank`.
        projections: Which kernels: "query", "key", "value", "output", "gate". "value" is the
            projection of keys in a layer with `use_key_as_value`.
        layers: Names or indices of attention layers; all by default.

    Returns:
        The model, to be compiled again before training.

    Raises:
        ValueError: Arguments that do not fit, or LoRA enabled already.
    """
    checks.positive_integer("rank", rank)
    unknown = set(projections) - set(PROJECTIONS)
    if unknown or not projections:
        raise ValueError(
            f"`projections` must be some of {PROJECTIONS}. Received: {list(projections)}"
        )
    chosen = choose_layers(model, layers)
    kernels = [dense for layer in chosen for dense in _kernels_of(layer, projections)]
    largest = min(
        max(sizes[0], math.prod(sizes[1:])) for sizes in (sizes_of(x.kernel) for x in kernels)
    )
    if rank > largest:
        raise ValueError(
            f"`rank` must be at most {largest}: factors of a higher rank have more numbers than "
            f"a kernel and give no more. Received: rank={rank}"
        )
    if any(dense.lora_enabled for dense in kernels):
        raise ValueError("LoRA is enabled on this model already; it can be enabled once.")
    _unfreeze_containers(model)
    for layer in flatten_layers(model, include_self=False):
        if not has_sublayers(layer):
            layer.trainable = False
    for layer in choose_layers(model):
        for vector in layer.vectors().values():
            vector.trainable = False
    for dense in kernels:
        # A frozen layer would freeze its factors too: only its own weights stay fixed.
        dense.trainable = True
        dense.enable_lora(rank, lora_alpha=alpha)
        if dense.bias is not None:
            dense.bias.trainable = False
    return model


def _kernels_of(layer: AttentionLayer, names: Sequence[str]) -> list[keras.layers.EinsumDense]:
    """The projections of a layer by name, each once."""
    if layer.use_key_as_value:
        names = ["key" if name == "value" else name for name in names]
    found = [layer.projection(name) for name in dict.fromkeys(names)]
    return [dense for dense in found if dense is not None]


def _unfreeze_containers(model: keras.Model) -> None:
    """Lets layers be trained that are in frozen models and layers; the weights stay as they are.

    A frozen container has no trainable weights, whatever the layers in it say: `fit()` would train
    nothing, without an error.
    """
    frozen = [
        layer for layer in flatten_layers(model) if has_sublayers(layer) and not layer.trainable
    ]
    flags = [(variable, variable.trainable) for layer in frozen for variable in layer.variables]
    for layer in frozen:
        layer.trainable = True  # and all variables and layers in it
    for variable, flag in flags:
        variable.trainable = flag
