"""What the layouts of a `keras.distribution` say of a layer: how its heads are split."""

import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import keras

from kerasattention._keras import kernel_variable, tensor_layouts
from kerasattention.attend.sharing import HeadAxes, check_ring, ring_in_force, share_of
from kerasattention.attend.tensors import is_static
from kerasattention.layers.heads import head_axis
from kerasattention.positions.base import Position

if TYPE_CHECKING:
    from kerasattention.layers.axes import AxisFold
    from kerasattention.layers.inputs import LayerCall
    from kerasattention.layers.projections import ProjectingLayer

# Keras asks for the layout of a layer's output under this name.
_OF_OUTPUT = re.compile(r"output[)$]*$")


def head_axes(layer: "ProjectingLayer") -> HeadAxes:
    """The mesh axes that split the layer's heads; none without a distribution.

    Raises:
        ValueError: A layout that splits tokens which the layer needs on one device.
    """
    if keras.backend.backend() != "jax":
        return HeadAxes()
    distribution = keras.distribution.distribution()
    if distribution is None or distribution.device_mesh is None:
        return HeadAxes()
    of_query = _axes_of(distribution, layer, "query")
    if layer.key_value_of is None:
        axes = HeadAxes(of_query, _axes_of(distribution, layer, "key"))
    else:
        axes = HeadAxes(of_query, _of_other_keys(distribution, layer, of_query))
    _check_lengths(distribution, layer, axes)
    return axes


def check_split_tokens(call: "LayerCall", fold: "AxisFold", position: Position | None) -> None:
    """Refuses a call that a ring of devices cannot compute, where sequences are split.

    Raises:
        ValueError: With the argument, or the length to pad to.
    """
    ring = ring_in_force()
    if ring is None:
        return
    given = {
        "attention_mask": call.attention_mask is not None,
        "attention_bias": call.attention_bias is not None,
        "return_attention_scores": call.return_attention_scores,
    }
    for name, is_given in given.items():
        if is_given:
            raise ValueError(
                f"`{name}` is not supported where {ring.size} devices split each sequence: it has "
                "a number for each query and key, and no device has all keys. Rules (`mask`, "
                "`use_causal_mask`, `sliding_window`), padding and `segment_ids` are."
            )
    if position is not None and _has_tensors_of_tokens(position):
        raise ValueError(
            "`position` must be rotary, ALiBi or relative along one axis where "
            f"{ring.size} devices split each sequence. Received: {position!r}"
        )
    if fold.axes[0] != 1:
        raise ValueError(
            f"`attention_axes` must begin with axis 1 where {ring.size} devices split each "
            f"sequence, which is that axis. Received: attention_axes={fold.axes}"
        )
    lengths = fold.length(call.query), fold.length(call.key)
    if is_static(*lengths):
        check_ring(ring, *lengths)


def _has_tensors_of_tokens(position: Position) -> bool:
    """Whether its bias holds queries, keys or coordinates of tokens."""
    kind = type(position)
    has_grid = kind.block_bias is not Position.block_bias and position.axes > 1
    return has_grid or kind.key_bias is not Position.key_bias


def key_head_axes(layer: "ProjectingLayer") -> tuple[str, ...]:
    """The mesh axes that split the key/value heads in a call, and so in a cache."""
    heads = layer.heads
    share = share_of(1, heads.query, heads.key_value, head_axes(layer))
    return () if share is None else share.key_heads


def _axes_of(distribution: Any, layer: "ProjectingLayer", name: str) -> tuple[str, ...]:
    """The mesh axes on the axis of heads of a projection's kernel."""
    kernel = kernel_variable(layer.projections()[name])
    axis = None if kernel is None else head_axis(layer, kernel)[0]
    if axis is None:
        return ()
    return _as_axes(_entries(distribution.get_variable_layout(kernel), distribution), axis)


def _of_other_keys(
    distribution: Any, layer: "ProjectingLayer", of_query: tuple[str, ...]
) -> tuple[str, ...]:
    """The mesh axes of keys of another layer: as many of the queries' as divide K."""
    sizes = distribution.device_mesh.backend_mesh.shape
    for count in range(len(of_query), 0, -1):
        axes = of_query[:count]
        if layer.heads.key_value % math.prod(sizes[axis] for axis in axes) == 0:
            return axes
    return ()


def _entries(layout: Any, distribution: Any) -> tuple[Any, ...]:
    """The entries of a layout of Keras or of a sharding of JAX; none if of another mesh.

    A variable keeps the layout of the distribution that it was made under.
    """
    if isinstance(layout, keras.distribution.TensorLayout):
        return tuple(layout.axes) if layout.device_mesh is distribution.device_mesh else ()
    is_on_mesh = getattr(layout, "mesh", None) == distribution.device_mesh.backend_mesh
    return tuple(layout.spec) if is_on_mesh else ()


def _as_axes(entries: tuple[Any, ...], axis: int) -> tuple[str, ...]:
    entry = entries[axis] if axis < len(entries) else None
    if entry is None:
        return ()
    return tuple(entry) if isinstance(entry, tuple) else (entry,)


def _check_lengths(distribution: Any, layer: "ProjectingLayer", axes: HeadAxes) -> None:
    """Refuses layouts of activations whose tokens are split over axes but a ring or the heads.

    Each product would gather its tokens: of tiles, in a loop. Where the same axis splits the
    heads, tokens are exchanged for heads once.
    """
    sizes = distribution.device_mesh.backend_mesh.shape
    ring = ring_in_force()
    allowed = {*axes.query} if ring is None else {*axes.query, ring.axis}
    for name, entries in _activations(distribution, layer):
        for axis in layer.fold.axes:
            found = [name for name in _as_axes(entries, axis) if sizes[name] > 1]
            if not set(found) <= allowed:
                raise ValueError(
                    f"{layer.name!r} needs all tokens that it attends to on one device, and the "
                    f"layout of {name} splits them. Split the batch or the heads instead, or the "
                    "sequence with `HeadParallel(seq=)`. "
                    f"Received: axes {entries}, of which axis {axis} is one of tokens, on the "
                    f"mesh {dict(sizes)}"
                )


def _activations(
    distribution: Any, layer: "ProjectingLayer"
) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """The layouts of activations like the layer's inputs, and of the model's own inputs."""
    rank = layer.fold.rank
    for pattern, layout in tensor_layouts(distribution).items():
        entries = _entries(layout, distribution)
        if len(entries) == rank and _OF_OUTPUT.search(pattern):
            yield repr(pattern), entries
    devices = distribution.device_mesh.devices.size
    for shape in ((devices,) * rank, (devices,) * (rank - 1)):  # features or ids
        yield "the data", _entries(distribution.get_data_layout(shape), distribution)
