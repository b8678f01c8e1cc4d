"""The rules for heads as a `LayoutMap`, for a `ModelParallel` of the user's."""

from collections.abc import Sequence
from typing import Any

import keras

from kerasattention import checks
from kerasattention.distribution.engine import check_layouts

# Keras before 3.14 searches for a pattern, and later ones match whole paths: this serves both.
_BEHIND = "^(?:.*/)?"


def attention_layout_map(
    mesh: keras.distribution.DeviceMesh, num_key_value_heads: int, model_axis: str = "model"
) -> keras.distribution.LayoutMap:
    """A map that splits the heads of attention layers over an axis of a mesh.

    A map sees the path of a weight, and not its shape. Tables of relative keys, which have one head
    or N, and scales of norms that may be of each head stay whole; `HeadParallel` splits them.

    Args:
        mesh: The `keras.distribution.DeviceMesh`.
        num_key_value_heads: K, of all attention layers: 1 or a multiple of the axis's devices.
        model_axis: The axis.

    Raises:
        ValueError: Key/value heads that the axis does not split, for which `HeadParallel` is made.
    """
    check_layouts("`attention_layout_map()`")
    checks.positive_integer("num_key_value_heads", num_key_value_heads)
    sizes = dict(zip(mesh.axis_names, mesh.shape, strict=True))
    if model_axis not in sizes:
        raise ValueError(
            f"`mesh` must have the axis {model_axis!r}. Received: a mesh of axes {list(sizes)}"
        )
    devices = sizes[model_axis]
    if num_key_value_heads > 1 and num_key_value_heads % devices:
        raise ValueError(
            f"{num_key_value_heads} key/value heads do not divide over the {devices} devices of "
            f"axis {model_axis!r}, and whole ones would be gathered in each step. Use "
            f"`HeadParallel(model={devices})`, whose mesh has two axes for heads."
        )
    found = keras.distribution.LayoutMap(mesh)
    projections = ["query", "gate"] + (["key", "value"] if num_key_value_heads > 1 else [])
    of_heads = f"{_BEHIND}(?:{'|'.join(projections)})/"
    layout_set(found, of_heads + "(?:kernel|lora_kernel_a)$", (None, model_axis, None))
    layout_set(found, of_heads + "bias$", (model_axis, None))
    layout_set(
        found,
        _BEHIND + "attention_output/(?:kernel|lora_kernel_a)$",
        (model_axis, None, None),
    )
    layout_set(found, _BEHIND + "sink$", (model_axis,))
    of_relative_keys = f"{_BEHIND}relative_keys_position(?:_[0-9]+)?/"
    layout_set(found, of_relative_keys + "(?:content|position)_bias$", (model_axis, None))
    layout_set(found, of_relative_keys + "position_kernel$", (None, model_axis, None))
    return layout_set(found, _BEHIND + r"relative_position(?:_\d+)?/table$", (None, model_axis))


def layout_set(
    layout_map: keras.distribution.LayoutMap, pattern: str, axes: Sequence[str | None]
) -> keras.distribution.LayoutMap:
    """Adds a rule to a map, which is returned; the map itself is changed.

    Args:
        layout_map: The `keras.distribution.LayoutMap`.
        pattern: A regular expression of the paths of weights.
        axes: For each axis of the weight the mesh's axis over which it is split, or None.
    """
    if not isinstance(layout_map, keras.distribution.LayoutMap):
        raise ValueError(
            "`layout_map` must be a `keras.distribution.LayoutMap`. "
            f"Received: {type(layout_map).__name__}"
        )
    known: list[Any] = [None, *layout_map.device_mesh.axis_names]
    if isinstance(axes, str) or any(axis not in known for axis in axes):
        raise ValueError(
            f"`axes` must be None or names of the mesh's axes, {known[1:]}. Received: {axes!r}"
        )
    if pattern in list(layout_map):  # `in` would search it as a path
        raise ValueError(f"`pattern` has a rule already. Received: {pattern!r}")
    layout_map[pattern] = tuple(axes)
    return layout_map
