"""What a recomputed call is given: its tensors, their masks, and the seed that is drawn once."""

import keras
import numpy as np
import pytest

from backends import tensor, to_numpy
from kerasattention import MultiHeadAttention
from kerasattention._keras import get_keras_mask, set_keras_mask
from kerasattention.layers.recompute import (
    RecomputedCall,
    rematerialize,
    seed_of_call,
    sublayers_scope,
)

SHAPE = (2, 5, 3)


def numbers(seed):
    return tensor(np.random.default_rng(seed).normal(size=SHAPE))


def test_a_call_is_a_function_of_its_distinct_floating_point_tensors():
    query, value, mask = numbers(1), numbers(2), tensor(np.ones((2, 5), bool))
    given = []

    def layer_call(*args, **kwargs):
        given.append((args, kwargs))
        return "result"

    call = RecomputedCall(
        layer_call, (query, value, None), {"key": query, "query_mask": mask, "training": True}
    )
    assert [id(x) for x in call.tensors] == [id(query), id(value)]
    others = numbers(3), numbers(4)
    assert call(*others) == "result"
    ((args, kwargs),) = given
    assert [id(x) for x in args] == [id(others[0]), id(others[1]), id(None)]
    assert kwargs.keys() == {"key", "query_mask", "training"}
    assert kwargs["key"] is others[0]
    assert kwargs["query_mask"] is mask
    assert kwargs["training"] is True


def test_a_mask_that_a_tensor_carries_is_set_again():
    carried, own = tensor(np.ones((2, 5), bool)), tensor(np.zeros((2, 5), bool))
    query, value = numbers(1), numbers(2)
    set_keras_mask(query, carried)
    set_keras_mask(value, carried)
    bare, masked = numbers(3), numbers(4)
    set_keras_mask(masked, own)
    RecomputedCall(lambda *_: None, (query, value), {})(bare, masked)
    assert get_keras_mask(bare) is carried
    assert get_keras_mask(masked) is own
    plain = numbers(5)
    RecomputedCall(lambda *_: None, (numbers(6),), {})(plain)
    assert get_keras_mask(plain) is None


@pytest.mark.parametrize(
    ("dropout", "training", "is_drawn"),
    [(0.5, True, True), (0.5, False, False), (0.5, None, False), (0.0, True, False)],
)
def test_each_run_of_a_call_has_the_seed_that_was_drawn_before(dropout, training, is_drawn):
    layer = MultiHeadAttention(2, 3, dropout=dropout, seed=7)
    layer.build(SHAPE)
    calls, seeds, scopes = [], [], []

    def layer_call(query, training=None):
        seeds.append(seed_of_call())
        scopes.append(keras.layers.Dense(1)._remat_mode)
        return query

    def keras_call(call, *_, **__):
        calls.append(call)
        return lambda *tensors: call(*tensors)

    x = numbers(1)
    with keras.RematScope("full"):
        run = rematerialize(layer, keras_call, layer_call, (x,), {"training": training})
        assert run(x, training=training) is x
        run(x, training=training)
    assert all(scope is None or scope.mode is None for scope in scopes)
    assert len(seeds) == 2
    assert seeds[0] is seeds[1] is calls[0].seed
    assert (seeds[0] is not None) is is_drawn
    assert seed_of_call() is None
    if is_drawn:
        assert to_numpy(seeds[0]).shape == (2,)


def test_what_keras_does_not_recompute_is_called_as_it_is():
    layer = MultiHeadAttention(2, 3)
    layer.build(SHAPE)

    def layer_call(query):
        return query

    assert rematerialize(layer, lambda call, *_: call, layer_call, (numbers(1),), {}) is layer_call


@pytest.mark.parametrize("scores", [False, True])
def test_the_output_carries_the_mask_of_the_query(scores):
    layer = MultiHeadAttention(2, 3)
    layer.build(SHAPE)
    mask, output = tensor(np.ones((2, 5), bool)), numbers(2)
    kwargs = {"query_mask": mask, "return_attention_scores": scores}
    result = (output, numbers(3)) if scores else output
    run = rematerialize(
        layer, lambda *_, **__: lambda *_: result, lambda *_: None, (numbers(1),), kwargs
    )
    assert run() is result
    np.testing.assert_array_equal(to_numpy(get_keras_mask(output)), np.ones((2, 5), bool))


def test_sublayers_of_a_recomputed_layer_are_not_recomputed_by_themselves():
    with keras.RematScope("full"):
        recomputed = MultiHeadAttention(2, 3)
        with sublayers_scope(recomputed):
            inner = keras.layers.Dense(2)
    assert inner._remat_mode is None or inner._remat_mode.mode is None
    plain = MultiHeadAttention(2, 3)
    with keras.RematScope("full"), sublayers_scope(plain):
        assert keras.layers.Dense(2)._remat_mode.mode == "full"
