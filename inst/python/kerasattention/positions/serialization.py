"""Positions in the configs of the layers that hold them."""

import secrets
import threading
import weakref
from typing import Any, cast

import keras

from kerasattention._keras import finds_shared_objects, shares_objects
from kerasattention.positions.base import Position


def position_config(position: Position) -> dict[str, Any]:
    """The config from which `as_position` makes the position again.

    A position that several layers share has an id there, so that copies of the layers
    share one. While a file is saved it is Keras's id, which Keras itself would give an
    object only from its second user on.
    """
    config = cast("dict[str, Any]", keras.saving.serialize_keras_object(position))
    if shares_objects():
        config["shared_object_id"] = id(position)
    else:
        config |= _sharing.entries(position)
    return config


def as_position(position: Any, owner: keras.layers.Layer) -> Position | None:
    """None, a position, or the one that a config describes, for a layer."""
    if isinstance(position, dict):
        position = _sharing.position_of(position, owner)
    if position is not None and not isinstance(position, Position):
        raise ValueError(
            "`position` must be `None` or a position such as `RotaryPosition()`. "
            f"Received: position={position!r}"
        )
    if isinstance(position, keras.layers.Layer):
        _sharing.note(position, owner)
    return position


class _Sharing:
    """Records which layers share a position, so that copies of those layers share its copy.

    `clone_model()` and `model_from_json()` copy layer by layer, without a scope in which
    Keras would find a copied object again. To tell one copy of a model from the next, each
    layer takes the latest copy of its position that has no layer of its name yet.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._owners: Any = weakref.WeakKeyDictionary()  # of a position, a set of layers
        self._ids: Any = weakref.WeakKeyDictionary()
        self._takers: Any = weakref.WeakKeyDictionary()  # of a copy, the names of its layers
        self._copies: Any = weakref.WeakValueDictionary()  # the latest of each id and thread

    def note(self, position: Any, owner: keras.layers.Layer) -> None:
        with self._guard:
            self._owners.setdefault(position, weakref.WeakSet()).add(owner)

    def entries(self, position: Any) -> dict[str, Any]:
        """The entries in the config of a position with more than one owner."""
        with self._guard:
            names = sorted(layer.name for layer in self._owners.get(position, ()))
            if len(names) < 2:
                return {}
            shared_id = self._ids.setdefault(position, secrets.randbits(53))
        return {"shared_object_id": shared_id, "shared_by": names}

    def position_of(self, config: dict[str, Any], owner: keras.layers.Layer) -> Any:
        names = config.get("shared_by")
        in_scope = finds_shared_objects()
        if in_scope or not isinstance(names, list):
            return keras.saving.deserialize_keras_object(config)
        key = (str(config.get("shared_object_id")), threading.get_ident())
        with self._guard:
            copy = self._copies.get(key)
            if copy is not None and _has_room(self._takers[copy], names, owner.name):
                self._takers[copy].append(owner.name)
                return copy
        copy = keras.saving.deserialize_keras_object(config)
        with self._guard:
            self._copies[key] = copy
            self._takers[copy] = [owner.name]
            self._ids[copy] = config.get("shared_object_id")
        return copy


def _has_room(takers: list[str], names: list[str], name: str) -> bool:
    return len(takers) < len(names) and takers.count(name) < max(1, names.count(name))


_sharing = _Sharing()
