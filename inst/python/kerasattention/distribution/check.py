"""Checks that the heads of a model are split, of which its numbers show nothing."""

import math
from collections.abc import Iterator
from typing import Any

import keras

from kerasattention._keras import flatten_layers, stored_value
from kerasattention.attend.tensors import is_dtensor
from kerasattention.distribution.head_parallel import HeadParallel
from kerasattention.layers.attention import AttentionLayer
from kerasattention.layers.heads import head_axis_by_name, is_packed

ATTENTION_LAYERS: tuple[type, ...] = (
    AttentionLayer,
    keras.layers.MultiHeadAttention,
    keras.layers.GroupQueryAttention,
)


def check_sharding(model: keras.Model) -> None:
    """Refuses a model whose attention kernels are not split by their heads.

    Within `with_distribution()` rules that concern none of its weights are refused as well.

    Raises:
        ValueError: With the names of the kernels, or the rules.
    """
    kernels = list(_kernels(model))
    packed = [v.path for v in _weights(model) if is_packed(v.path, len(v.shape))]
    if packed:
        raise ValueError(
            "Kernels of attention layers are whole on each device: packed as int4 they have no "
            f"axis of heads. Those of int8 are split. Received: {', '.join(map(repr, packed[:6]))}"
        )
    if not kernels:
        raise ValueError(f"Model {model.name!r} has no attention layer that is built.")
    devices = _devices_of_heads(model, kernels[0][0])
    distribution = keras.distribution.distribution()
    ours = distribution if isinstance(distribution, HeadParallel) else None
    for wrong, text in ((_is_whole, "whole"), (_is_split_elsewhere, "split, but not by heads")):
        found = [v.path for v, axis in kernels if wrong(v, axis) and not _is_ruled(ours, v.path)]
        if found:
            shown = ", ".join(repr(path) for path in found[:6])
            way = f"`HeadParallel(model={devices})`"
            if keras.backend.backend() == "torch":
                way = "`attention_layout_map()`"
            more = f" and {len(found) - 6} more" if len(found) > 6 else ""
            raise ValueError(
                f"Kernels of attention layers are {text} on each of {devices} devices: "
                f"{shown}{more}. {way} splits them by heads."
            )
    if ours is not None:
        _check_rules(ours)


def _kernels(model: keras.Model) -> Iterator[tuple[Any, int]]:
    """The kernels of attention layers and the axes of their heads."""
    for variable in _weights(model):
        axis, _ = head_axis_by_name(variable.path, len(variable.shape))
        if axis is not None and variable.path.endswith("/kernel"):
            yield variable, axis


def _weights(model: keras.Model) -> Iterator[Any]:
    for layer in flatten_layers(model):
        if isinstance(layer, ATTENTION_LAYERS):
            yield from layer.variables


def _devices_of_heads(model: keras.Model, variable: Any) -> int:
    """The number of devices that the weights are split over."""
    sizes = _mesh_of(variable)
    if not sizes:
        raise ValueError(
            f"Model {model.name!r} was not built over several devices: build it inside "
            "`with_distribution()`."
        )
    batch = sizes.get("batch", next(iter(sizes.values())))
    parts = sizes.get("seq", 1)
    devices = math.prod(sizes.values()) // (batch * parts)
    if devices == 1:
        split = "batches are" if parts == 1 else "batches and sequences are"
        raise ValueError(
            f"The mesh {sizes} has no axis for weights: each device has all of them. Only "
            f"{split} split."
        )
    return devices


def _mesh_of(variable: Any) -> dict[str, int]:
    """The sizes of the axes of the mesh that a weight is on; none on one device."""
    if keras.backend.backend() == "torch":  # a whole weight is no DTensor
        distribution = keras.distribution.distribution()
        mesh = None if distribution is None else distribution.device_mesh
        return {} if mesh is None else dict(zip(mesh.axis_names, mesh.shape, strict=True))
    sharding = getattr(stored_value(variable), "sharding", None)
    return dict(getattr(getattr(sharding, "mesh", None), "shape", {}))


def _parts(variable: Any) -> list[int]:
    """The number of parts along each axis of a weight."""
    shape, value = tuple(variable.shape), stored_value(variable)
    if keras.backend.backend() == "torch":
        shard = value.to_local().shape if is_dtensor(value) else shape
    else:
        shard = value.sharding.shard_shape(shape)
    return [size // part for size, part in zip(shape, shard, strict=True)]


def _is_whole(variable: Any, axis: int) -> bool:
    return max(_parts(variable)) == 1 and variable.shape[axis] > 1


def _is_split_elsewhere(variable: Any, axis: int) -> bool:
    """Whether it is split, but along no axis that counts heads."""
    return _parts(variable)[axis] == 1 and variable.shape[axis] > 1


def _is_ruled(distribution: HeadParallel | None, path: str) -> bool:
    return distribution is not None and distribution.has_rule(path)


def _check_rules(distribution: HeadParallel) -> None:
    given = [*distribution.rules, *(["mlp"] if distribution.mlp else [])]
    unused = [rule for rule in given if rule not in distribution.used_rules]
    if unused:
        raise ValueError(
            f"Rules that no weight of a model matches: {unused}. A pattern is compared with the "
            'whole path, such as "b0_ffn_up/kernel".'
        )
