"""Positions of several axes: what a layer rotates by and looks biases up by.

Rules of masks do not read them: they compare the order of the tokens, as the models do that have
such positions (Qwen2-VL). So the rules know their blocks, and blocks of keys are left out.
"""

from kerasattention.attend.tensors import Tensor
from kerasattention.layers.axes import AxisFold
from kerasattention.layers.inputs import LayerCall
from kerasattention.positions.base import Position


def check_coordinates(call: LayerCall, fold: AxisFold, position: Position | None) -> None:
    """Refuses a call whose positions are not those that the layer's position takes.

    Their shape was checked before, by `shapes.check_call()`.
    """
    if position is None or position.axes == 1:
        return
    axes = position.axes
    is_given = call.positions is not None and len(call.positions.shape) == 3
    is_grid = call.positions is None and len(fold.axes) == axes
    if (is_given or is_grid or position.needs_axes) and not call.self_attention:
        raise ValueError(
            "Positions of several axes are for self-attention, in which queries and keys share "
            f"them. Received: query {tuple(call.query.shape)}, key {tuple(call.key.shape)}"
        )
    if position.class_token and not is_given:
        raise ValueError(
            f"The layer's `position` has a class token and needs `positions` of shape "
            f"(B, T, {axes}), of which the first of each row is not read. "
            f"Received: positions={_described(call.positions)}"
        )
    if position.needs_axes and not (is_given or is_grid):
        attended = "" if call.positions is None else f", {len(fold.axes)} attended axes"
        raise ValueError(
            f"The layer's `position` has {axes} axes and needs `positions` of shape "
            f"(B, T, {axes}), or inputs with {axes} attended axes, of which it takes the indices. "
            f"Received: positions={_described(call.positions)}{attended}"
        )


def coordinates_of(call: LayerCall, fold: AxisFold, position: Position | None) -> Tensor | None:
    """Positions (B'|1, T, axes), or None where each token has one position."""
    if position is None or position.axes == 1:
        return None
    if call.positions is None:
        return fold.grid(call.query) if len(fold.axes) == position.axes else None
    if len(call.positions.shape) == 2:
        return None
    return fold.fold_tokens(call.positions, call.query)  # (B'|1, T, axes)


def _described(positions: Tensor | None) -> str:
    return "None" if positions is None else f"a tensor of shape {tuple(positions.shape)}"
