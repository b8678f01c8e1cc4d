"""What a copied layer gets of its source: weights, quantisation, LoRA and frozen parts."""

import numpy as np
import pytest
from keras import layers

from backends import to_numpy
from kerasattention import MultiHeadAttention
from kerasattention.models.alike import freeze_alike, set_arrays, twins


def built(layer, shape=(None, 3, 5)):
    layer.build(shape) if not isinstance(layer, layers.MultiHeadAttention) else layer.build(
        shape, shape
    )
    return layer


def test_parts_are_paired_by_name_with_an_attention_layer_and_in_order_else():
    theirs = built(layers.MultiHeadAttention(2, 7))
    ours = built(MultiHeadAttention(2, 7))
    pairs = twins(theirs, ours)
    assert pairs[0] == (theirs, ours)
    names = {"query", "key", "value", "attention_output"}
    assert names <= {ours.name for _, ours in pairs[1:]}
    assert all(first.name == second.name for first, second in pairs[1:])
    one, other = (built(layers.TimeDistributed(layers.Dense(2))) for _ in range(2))
    assert twins(one, other) == [(one, other), (one.layer, other.layer)]
    dense = built(layers.Dense(2))
    assert twins(one, dense) == [(one, dense)]


def test_a_copy_gets_weights_quantisation_and_lora():
    source, copy = built(layers.Dense(7)), built(layers.Dense(7))
    source.enable_lora(2)
    source.lora_kernel_b.assign(np.ones((2, 7)))
    source.quantize("int8")
    set_arrays(source, copy, None)
    assert (copy.quantization_mode, copy.lora_rank) == ("int8", 2)
    for first, second in zip(source.weights, copy.weights, strict=True):
        np.testing.assert_array_equal(to_numpy(first.value), to_numpy(second.value))


def test_arrays_that_are_given_take_the_place_of_the_sources():
    source, copy = built(layers.Dense(7)), built(layers.Dense(7))
    arrays = [np.full((5, 7), 3.0), np.arange(7.0)]
    set_arrays(source, copy, arrays)
    np.testing.assert_array_equal(to_numpy(copy.kernel), arrays[0])
    with pytest.raises(ValueError, match=r"Layer 'narrow' \(Dense\) cannot be copied"):
        set_arrays(built(layers.Dense(2, name="narrow")), copy, None)


@pytest.mark.parametrize("frozen", ["layer", "part", "weight"])
def test_frozen_stays_frozen_at_every_level(frozen):
    source, copy = built(MultiHeadAttention(2, 7)), built(MultiHeadAttention(2, 7))
    part = source.projection("key")
    target = {"layer": source, "part": part, "weight": part.bias}[frozen]
    target.trainable = False
    freeze_alike([(source, copy)], [(source, copy)])
    found = [weight.trainable for weight in copy.weights]
    assert found == [weight.trainable for weight in source.weights]
    assert found.count(False) == {"layer": 8, "part": 2, "weight": 1}[frozen]


def test_a_layer_made_frozen_stays_frozen():
    source = built(layers.MultiHeadAttention(2, 7, trainable=False))
    copy = built(MultiHeadAttention(2, 7, trainable=False))
    freeze_alike([(source, copy)], [(source, copy)])
    assert not copy.trainable
    assert not copy.trainable_weights
