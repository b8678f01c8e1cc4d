"""Subclasses that override `_compute_attention()`, as those of Keras's layers do."""

from typing import TYPE_CHECKING, Any

from keras import ops

from kerasattention.attend.bias import join_biases
from kerasattention.attend.mask import AttentionMask
from kerasattention.attend.tensors import Span, Tensor

if TYPE_CHECKING:
    from kerasattention.layers.attention import AttentionLayer
    from kerasattention.layers.inputs import LayerCall


def attend_overridden(
    layer: "AttentionLayer",
    call: "LayerCall",
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: AttentionMask,
    options: dict[str, Any],
) -> tuple[Tensor, Tensor | None]:
    """Calls the override with one mask that holds all masks of the call."""
    _check_options(layer, options)
    rows, columns = Span(0, ops.shape(query)[1]), Span(0, ops.shape(key)[1])
    block = mask.block_mask(rows, columns)  # (B|1, N|1, T, S)
    if mask.query_mask is not None:
        real = mask.query_mask[:, None, :, None]  # (B, 1, T, 1)
        block = real if block is None else ops.logical_and(block, real)  # (B, N|1, T, S)
    # Keras's own signature has no such argument in every version: given only where asked for.
    extra = {"return_attention_scores": True} if call.return_attention_scores else {}
    return layer._compute_attention(
        query, key, value, attention_mask=block, training=call.training, **extra
    )


# The layer's arguments for options of the kernels that have another name.
_ARGUMENTS = {
    "biases": "attention_bias` or a `position` with biases",
    "soft_cap": "logit_soft_cap",
    "sink": "attention_sink",
}


def _check_options(layer: "AttentionLayer", options: dict[str, Any]) -> None:
    """Refuses options that a `_compute_attention()` as in Keras has no argument for."""
    for name, value in options.items():
        given = join_biases(value) if name == "biases" else value
        if given is not None:
            raise ValueError(
                f"`{type(layer).__name__}` overrides `_compute_attention()`, which as in "
                f"Keras takes a mask only, so `{_ARGUMENTS.get(name, name)}` would be lost. "
                "Leave it out, or do not override the method."
            )
