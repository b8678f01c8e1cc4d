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
