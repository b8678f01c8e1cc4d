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


def head_axis(layer: "ProjectingLayer", variable: Any) -> tuple[int | None, bool]:
    """The axis of a weight that counts heads (None: none), and whether those are query heads."""
    for name, dense in layer.projections().items():
        is_output, of_query = name == "output", name in ("query", "gate", "output")
        if dense.bias is variable:
            return (None if is_output else 0), of_query
        if kernel_variable(dense) is variable and len(variable.shape) > 2:  # int4 has it flat
            return (0 if is_output else 1), of_query
    vectors = layer.vectors()
    if variable is vectors.get("sink"):
        return 0, True
    if layer.norm_options is not None and layer.norm_options.of_each_head:
        for name in ("query_norm", "key_norm"):
            if any(variable is vectors.get(each) for each in (name, f"{name}_bias")):
                return 0, name == "query_norm"
    axis = None if layer.position is None else layer.position.head_axis(variable)
    return axis, axis is not None


def refuse_fixed_heads(layer: "AttentionLayer") -> None:
    """Refuses a layer whose heads cannot be removed.

    Raises:
        ValueError: A projection that is quantised or has LoRA's factors.
    """
    for dense in layer.projections().values():
        if dense.quantization_mode is not None or getattr(dense, "lora_enabled", False):
            raise ValueError(
                "The heads of a quantised layer or one with LoRA stay as they are. "
                "Change them before `quantize()` and before LoRA is enabled. "
                f"Received: {layer.name!r}"
            )
