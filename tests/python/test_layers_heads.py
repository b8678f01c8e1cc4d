"""Layers with some of another layer's heads."""

import numpy as np
import pytest

from kerasattention import (
    AlibiPosition,
    GroupQueryAttention,
    MultiHeadAttention,
    RelativeKeysPosition,
    RelativePosition,
)
from kerasattention.layers.heads import (
    head_axis,
    head_axis_by_name,
    is_packed,
    layer_with_heads,
    refuse_fixed_heads,
)

D = 5


def grouped(**options):
    layer = GroupQueryAttention(4, 6, 3, **options)
    layer.build((2, 7, D))
    return layer


def test_a_layer_with_fewer_heads_keeps_the_other_options():
    layer = grouped(sliding_window=3, position=AlibiPosition(), use_gate=True)
    smaller = layer_with_heads(layer, [2, 3], [1])
    assert not smaller.built
    assert (smaller.num_query_heads, smaller.num_key_value_heads) == (2, 1)
    assert smaller.sliding_window == 3
    assert smaller.use_gate
    slopes = GroupQueryAttention(4, 6, 3, position=AlibiPosition()).position.keep_heads([2, 3], 6)
    assert smaller.position.slopes == slopes.slopes


def test_a_table_of_positions_is_built_for_the_heads_that_stay():
    smaller = layer_with_heads(grouped(position=RelativePosition()), [0, 5], [0, 2])
    smaller.build((2, 7, D))
    assert smaller.position.table.shape[1] == 2


def test_multi_head_attention_keeps_as_many_keys_as_queries():
    layer = MultiHeadAttention(3, 4)
    layer.build((2, 7, D))
    assert layer_with_heads(layer, [0, 2], [0, 2]).num_heads == 2
    with pytest.raises(ValueError, match="as many key/value heads as query heads"):
        layer_with_heads(layer, [0, 2], [0])


def test_the_axis_of_heads_of_every_weight():
    layer = grouped(
        use_gate=True, qk_norm=True, attention_sink=True, position=RelativePosition(8, 16)
    )
    found = {}
    for variable in layer.weights:
        axis, of_query = head_axis(layer, variable)
        name = "/".join(variable.path.split("/")[-2:])
        found[name] = (axis, of_query)
        if axis is not None:
            assert variable.shape[axis] == (6 if of_query else 3), name
    without = {name for name, (axis, _) in found.items() if axis is None}
    assert {name.split("/")[0] for name in without} == {
        "attention_output",
        "query_norm",
        "key_norm",
    } | {name.split("/")[0] for name in without if "seed" in name}
    assert found["value/kernel"] == (1, False)
    assert found["gate/bias"] == (0, True)
    assert found["attention_output/kernel"] == (0, True)


def test_heads_of_a_quantised_layer_stay():
    layer = grouped()
    layer(np.ones((2, 7, D), "float32"))
    layer.projection("query").quantize("int8")
    with pytest.raises(ValueError, match="The heads of a quantised layer"):
        refuse_fixed_heads(layer)


WIDE = {"type": "layer", "over": "width", "bias": True}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_gate": "head", "attention_sink": True, "qk_norm": WIDE},
        {"qk_norm": True},
        {"position": RelativeKeysPosition(5, "transformer_xl")},
        {"position": RelativeKeysPosition(5, "deberta")},
    ],
)
@pytest.mark.parametrize("features", [(D,), (2, 5)])
def test_the_path_of_a_weight_says_the_same_as_its_layer(options, features):
    """Of kernels, biases and sinks; Keras's layers give theirs the same paths."""
    options = {"position": RelativePosition(8, 16)} | options
    layer = MultiHeadAttention(3, 4, output_shape=features, **options)
    layer.build((2, 7, D))
    for variable in layer.weights:
        by_path = head_axis_by_name(variable.path, len(variable.shape))
        assert (
            by_path == head_axis(layer, variable)
            or by_path[0] is None is head_axis(layer, variable)[0]
        )


def test_the_paths_of_quantised_weights_and_factors():
    layer = grouped(use_gate=True)
    layer.projection("query").enable_lora(2)
    for name in ("key", "output"):
        layer.projection(name).quantize("int8")
    layer.projection("value").quantize("int4")
    found = {}
    for variable in layer.weights:
        axis, of_query = head_axis_by_name(variable.path, len(variable.shape))
        found["/".join(variable.path.split("/")[-2:])] = axis
        if axis is not None:
            assert variable.shape[axis] == (6 if of_query else 3), variable.path
    assert found["query/lora_kernel_a"] == 1
    assert found["query/lora_kernel_b"] is None
    assert found["key/kernel"] == 1
    assert found["key/kernel_scale"] == 2
    assert found["attention_output/kernel"] == 0
    assert found["attention_output/kernel_scale"] is None
    assert found["value/kernel"] is None


@pytest.mark.parametrize(
    ("path", "rank", "expected"),
    [
        ("a/query/kernel", 3, (1, True)),
        ("a/query/bias", 2, (0, True)),
        ("a/key/kernel", 3, (1, False)),
        ("a/value/bias", 2, (0, False)),
        ("a/gate/kernel", 3, (1, True)),
        ("a/attention_output/kernel", 3, (0, True)),
        ("a/attention_output/kernel", 4, (0, True)),  # an output of two axes
        ("a/attention_output/bias", 1, (None, True)),
        ("a/query_norm/scale", 2, (0, True)),
        ("a/query_norm/bias", 2, (0, True)),
        ("a/key_norm/scale", 2, (0, False)),
        ("a/key_norm/bias", 2, (0, False)),
        ("a/query_norm/scale", 1, (None, False)),
        ("a/sink", 1, (0, True)),
        ("a/position/table", 2, (1, True)),
    ],
)
def test_axes_by_path(path, rank, expected):
    assert head_axis_by_name(path, rank) == expected


@pytest.mark.parametrize(
    ("path", "rank"),
    [("query/kernel", 2), ("sink", 2), ("a/kernel", 3), ("query", 3), ("query/other", 3)],
)
def test_other_weights_have_no_axis_of_heads(path, rank):
    assert head_axis_by_name(path, rank)[0] is None


def test_a_packed_kernel_has_no_axis_of_heads():
    """int4: two axes, as no other kernel of a projection has."""
    assert is_packed("a/query/kernel", 2)
    for path, rank in (("a/query/kernel", 3), ("a/query/bias", 2), ("a/dense/kernel", 2)):
        assert not is_packed(path, rank)
