"""Numbers of heads, and layers with some of another layer's heads."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kerasattention._keras import kernel_variable

if TYPE_CHECKING:
    from kerasattention.layers.attention import AttentionLayer
    from kerasattention.layers.projections import ProjectingLayer


@dataclasses.dataclass(frozen=True)
class Heads:
    """Numbers and sizes of heads: N, K, H and Hv."""

    query: int
    key_value: int
    size: int
    value_size: int


def layer_with_heads(
    layer: "AttentionLayer", query: Sequence[int], key_value: Sequence[int]
) -> "AttentionLayer":
    """An unbuilt layer with the options of `layer` and some of its heads.

    Raises:
        ValueError: A norm over all heads, whose result the removed heads were part of.
    """
    options = layer.norm_options
    if options is not None and options.over == "width" and len(query) < layer.heads.query:
        raise ValueError(
            f'The norm of layer {layer.name!r}, `qk_norm` over the "width", is of all heads '
            "together: without some of them the others would give other results. Only layers "
            'whose norm is over the "head" can lose heads.'
        )
    config = {**layer.get_config(), **layer.head_config(len(query), len(key_value))}
    if layer.position is not None:
        position = layer.position.keep_heads(query, layer.heads.query)
        if position is not layer.position:
            config["position"] = position
        else:  # the copy is built for fewer heads
            config["position"].pop("build_config", None)
    return type(layer).from_config(config)


# The axis of heads in a projection's kernel and LoRA's first factor, and in its bias.
_OF_QUERY = {"query": True, "key": False, "value": False, "gate": True, "attention_output": True}
# Of `RelativeKeysPosition`: (N, H), (width, N, H) or (distances, N, H); Shaw's has one head.
_OF_RELATIVE_KEYS = {
    **{"content_bias": 2, "position_bias": 2},
    **{"position_kernel": 3, "key_table": 3, "query_table": 3},
}
_RANKS = {"kernel": 3, "lora_kernel_a": 3, "bias": 2, "kernel_scale": 4}


def head_axis_by_name(path: str, rank: int) -> tuple[int | None, bool]:
    """As `head_axis()`, from a weight's path, also of Keras's attention layers.

    Keras asks for the layout of a weight before its layer holds it. Quantised kernels and LoRA's
    factors are included; a packed one (int4) has no axis of heads.
    """
    *_, owner, name = ["", *path.split("/")]
    if name == "sink" and rank == 1:
        return 0, True
    if name == "table" and rank == 2:
        return 1, True
    if _OF_RELATIVE_KEYS.get(name) == rank:
        return rank - 2, True
    if owner in ("query_norm", "key_norm") and name in ("scale", "bias") and rank == 2:
        return 0, owner == "query_norm"  # of each head; of rank 1 it is the same for all
    of_query = _OF_QUERY.get(owner, False)
    if owner not in _OF_QUERY or name not in _RANKS:
        return None, False
    if owner == "attention_output":
        has_heads = name in ("kernel", "lora_kernel_a") and rank >= 3
        return (0 if has_heads else None), of_query
    # A scale of int8 is broadcast to (1, 1, N, H), with a bias's spare axis once more.
    has_heads = rank == _RANKS[name] or (name == "kernel_scale" and rank > 4)
    return (rank - 2 if has_heads else None), of_query


def is_packed(path: str, rank: int) -> bool:
    """Whether a weight is a kernel of int4, two numbers a byte, in which heads are no axis."""
    *_, owner, name = ["", *path.split("/")]
    return owner in _OF_QUERY and name == "kernel" and rank == 2


def head_axis(layer: "ProjectingLayer", variable: Any) -> tuple[int | None, bool]:
    """The axis of a weight that counts heads (None: none), and whether those are query heads."""
    for dense in layer.projections().values():
        for name, weight in (("kernel", kernel_variable(dense)), ("bias", dense.bias)):
            if weight is variable:
                return head_axis_by_name(f"{dense.name}/{name}", len(variable.shape))
    vectors = layer.vectors()
    if variable is vectors.get("sink"):
        return head_axis_by_name("sink", 1)
    for name in ("query_norm", "key_norm"):
        for weight in ("scale", "bias"):
            if variable is vectors.get(name if weight == "scale" else f"{name}_bias"):
                return head_axis_by_name(f"{name}/{weight}", len(variable.shape))
    axis = None if layer.position is None else layer.position.head_axis(variable)
    return axis, axis is not None


def refuse_fixed_heads(layer: "AttentionLayer") -> None:
    """Refuses a layer whose heads cannot be removed.

    Raises:
        ValueError: A projection that is quantised or has LoRA's factors, or keys and values that
            two layers use.
    """
    if layer.key_value_of is not None or layer.shares_key_value:
        raise ValueError(
            f"The heads of layer {layer.name!r} stay as they are: it shares its keys and values "
            "with another layer (`key_value_of`)."
        )
    for dense in layer.projections().values():
        if dense.quantization_mode is not None or getattr(dense, "lora_enabled", False):
            raise ValueError(
                "The heads of a quantised layer or one with LoRA stay as they are. "
                "Change them before `quantize()` and before LoRA is enabled. "
                f"Received: {layer.name!r}"
            )
