"""The arguments of a call: defaults, folded padding, and one set of checks for all paths."""

import inspect

import keras
import numpy as np
import pytest

from backends import tensor, to_numpy
from kerasattention import GroupQueryAttention, MultiHeadAttention
from kerasattention._keras import set_keras_mask
from kerasattention.layers.axes import AxisFold
from kerasattention.layers.inputs import NUMBERS_OF_TOKENS, LayerCall, arguments_by_name

B, T, S, D = 2, 5, 7, 11
PLAIN = AxisFold((1,), 3)
LENGTHS = np.arange(T) < np.array([[3], [5]])  # (B, T)


def inputs(*lengths):
    return [tensor(np.ones((B, length, D))) for length in lengths]


def test_arguments_stand_in_the_order_of_the_layers_call():
    names = list(inspect.signature(MultiHeadAttention.call).parameters)[1:]
    assert names == list(inspect.signature(LayerCall).parameters)
    given = arguments_by_name(("q", "v"), {"training": True})
    assert given == {"query": "q", "value": "v", "training": True}


def test_value_is_the_query_and_key_the_value_by_default():
    query, value = inputs(T, S)
    alone, cross = LayerCall(query), LayerCall(query, value)
    assert alone.tensors == (query, query, query)
    assert alone.self_attention
    assert cross.tensors == (query, value, value)
    assert not cross.self_attention
    with pytest.raises(ValueError, match="`key` needs a `value`"):
        LayerCall(query, key=value)


def test_padding_joins_a_tensors_own_mask_and_the_masks_given():
    (query,) = inputs(T)
    set_keras_mask(query, tensor(LENGTHS))
    own = np.arange(T)[None] > np.array([[0], [1]])
    call = LayerCall(query, query_mask=tensor(own))
    call.check(PLAIN, heads=2, causal=True)
    mask = call.folded_mask(PLAIN, window=None)
    np.testing.assert_array_equal(to_numpy(call.query_padding), LENGTHS & own)
    # Keys carry the tensor's mask; the query's argument does not concern them.
    np.testing.assert_array_equal(to_numpy(call.key_padding), LENGTHS)
    assert mask.causal


def test_one_mask_serves_queries_and_keys_where_nothing_else_is_given():
    (query,) = inputs(T)
    mask = tensor(LENGTHS)
    set_keras_mask(query, mask)
    call = LayerCall(query, query_mask=mask, value_mask=mask)  # as Keras hands masks over
    call.check(PLAIN, heads=2, causal=False)
    call.folded_mask(PLAIN, window=None)
    assert call.key_padding is call.query_padding


def test_the_causal_rule_of_the_call_goes_before_the_layers():
    for given, of_layer, expected in (
        (None, True, True),
        (None, False, False),
        (0, True, False),
        (1, False, True),
    ):
        call = LayerCall(*inputs(T), use_causal_mask=given)
        call.check(PLAIN, heads=2, causal=of_layer)
        assert call.use_causal_mask is expected


@pytest.mark.parametrize("name", ["query", "value", "key"])
def test_inputs_of_integers_are_refused_by_name(name):
    given = dict(zip(("query", "value", "key"), inputs(T, S, S), strict=True))
    given[name] = tensor(np.ones((B, T, D)), "int32")
    with pytest.raises(ValueError, match=f"^`{name}` must be floating-point numbers"):
        LayerCall(**given).check(PLAIN, heads=2, causal=False)


def test_masks_are_compared_with_the_heads_and_positions_with_the_axes():
    (query,) = inputs(T)
    of_heads = {"attention_mask": tensor(np.ones((B, 2, T, T), bool))}
    of_axes = {"positions": tensor(np.ones((B, T, 3), "int32"))}
    LayerCall(query, **of_heads).check(PLAIN, heads=2, causal=False)
    LayerCall(query, **of_axes).check(PLAIN, heads=2, causal=False, axes=3)
    with pytest.raises(ValueError, match=r"`attention_mask` must broadcast to .* = \(2, 3, 5, 5\)"):
        LayerCall(query, **of_heads).check(PLAIN, heads=3, causal=False)
    for axes in ({}, {"axes": 2}):
        with pytest.raises(ValueError, match="`positions` must have shape"):
            LayerCall(query, **of_axes).check(PLAIN, heads=2, causal=False, **axes)


def test_numbers_of_one_axis_of_tokens_are_for_self_attention():
    query, value = inputs(T, T)
    for name, verb in (("segment_ids", "are"), ("bidirectional", "is")):
        given = {name: tensor(np.ones((B, T), "int32"))}
        LayerCall(query, **given).check(PLAIN, heads=2, causal=False)
        with pytest.raises(ValueError) as error:
            LayerCall(query, value, **given).check(PLAIN, heads=2, causal=False)
        assert str(error.value) == (
            f"`{name}` {verb} for self-attention: queries and keys share the numbers. "
            "Use `attention_mask` for cross-attention. Received: "
            "query (2, 5, 11), value (2, 5, 11), key (2, 5, 11)"
        )
        with pytest.raises(ValueError, match=f"^`{name}` must be integers"):
            LayerCall(query, **{name: tensor(np.ones((B, T)))}).check(PLAIN, 2, False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention_mask": np.ones((T, T + 1), bool)}, "`attention_mask` must broadcast"),
        ({"attention_bias": np.ones((T, T), bool)}, "`attention_bias` is added"),
        ({"positions": np.ones((B, T), "float16")}, "`positions` must be integers, or real"),
        ({"use_causal_mask": 2}, "`use_causal_mask` must be True or False"),
    ],
    ids=["shape", "bias", "positions", "causal"],
)
def test_symbolic_calls_refuse_what_real_calls_refuse(options, message):
    layer = MultiHeadAttention(2, 3)
    layer.build((B, T, D))
    symbolic = {
        name: keras.KerasTensor(x.shape, str(x.dtype)) if isinstance(x, np.ndarray) else x
        for name, x in options.items()
    }
    options = {
        name: tensor(x, str(x.dtype)) if isinstance(x, np.ndarray) else x
        for name, x in options.items()
    }
    with pytest.raises(ValueError, match=message):
        layer.call(*inputs(T), **options)
    with pytest.raises(ValueError, match=message):
        layer.compute_output_spec(keras.KerasTensor((B, T, D)), **symbolic)


@pytest.mark.parametrize("name", NUMBERS_OF_TOKENS)
def test_lists_are_refused_by_name(name):
    layer, x = GroupQueryAttention(4, 2, 2), np.ones((2, 5, 3), "float32")
    with pytest.raises(ValueError, match=f"`{name}` must be a tensor or an array"):
        layer(x, **{name: [[1, 1, 1, 2, 2]] * 2})
