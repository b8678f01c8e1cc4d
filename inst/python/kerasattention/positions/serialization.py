"""Positions in the configs of the layers that hold them."""

from typing import Any

import keras

from kerasattention._keras import shares_objects
from kerasattention.positions.base import Position


def position_config(position: Position) -> dict[str, Any]:
    """What `as_position` makes the position of again.

    While a model is saved, that includes a name by which Keras knows the object
    again, so that layers that share a table share it when they are loaded. Keras
    itself would mark an object only from its second user on.
    """
    config = keras.saving.serialize_keras_object(position)
    if shares_objects():
        config["shared_object_id"] = id(position)
    return config


def as_position(position: Any) -> Position | None:
    """None, a position, or the one that a config describes."""
    if isinstance(position, dict):
        position = keras.saving.deserialize_keras_object(position)
    if position is None or isinstance(position, Position):
        return position
    raise ValueError(
        "`position` must be `None` or a position such as `RotaryPosition()`. "
        f"Received: position={position!r}"
    )
