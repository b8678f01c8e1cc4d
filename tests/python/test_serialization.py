"""Positions in configs: what layers share, their copies share, one copy of a model at a time."""

import keras
import pytest

from kerasattention import RelativePosition, RotaryPosition
from kerasattention.positions.serialization import as_position, position_config


def owners(*names):
    return [keras.layers.Layer(name=name) for name in names]


def shared(*names):
    position = RelativePosition(8, 16)
    for layer in owners(*names):
        # A layer holds its position, and positions do not keep layers alive.
        as_position(position, layer)
        LAYERS.append(layer)
    return position


LAYERS = []


def test_none_positions_and_configs_become_positions():
    (owner,) = owners("a")
    rotary = RotaryPosition(theta=70.0)
    assert as_position(None, owner) is None
    assert as_position(rotary, owner) is rotary
    again = as_position(position_config(rotary), owner)
    assert isinstance(again, RotaryPosition)
    assert again.get_config() == rotary.get_config()
    with pytest.raises(ValueError, match=r"`position` must be `None` or a position.*'rotary'"):
        as_position("rotary", owner)


def test_a_position_of_one_layer_has_no_sharing_in_its_config():
    assert "shared_by" not in position_config(shared("alone"))


def test_copies_of_layers_share_a_copy_and_the_next_copies_another():
    config = position_config(shared("a", "b"))
    assert config["shared_by"] == ["a", "b"]
    first = [as_position(config, layer) for layer in owners("a", "b")]
    second = [as_position(config, layer) for layer in owners("a", "b")]
    assert first[0] is first[1]
    assert second[0] is second[1]
    assert first[0] is not second[0]
    # A layer of a name that the copy already has begins the next copy.
    third = [as_position(config, layer) for layer in owners("a", "a")]
    assert third[0] is not third[1]


def test_layers_of_one_name_share_as_often_as_it_occurs():
    config = position_config(shared("same", "same"))
    copies = [as_position(config, layer) for layer in owners("same", "same", "same")]
    assert copies[0] is copies[1]
    assert copies[2] is not copies[0]


def test_different_positions_never_share_a_copy():
    configs = [position_config(shared("a", "b")) for _ in range(2)]
    assert configs[0]["shared_object_id"] != configs[1]["shared_object_id"]
    copies = [as_position(config, owners("a")[0]) for config in configs]
    assert copies[0] is not copies[1]
