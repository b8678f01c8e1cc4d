"""Positions of new tokens are behind all others that may see them."""

import keras
import numpy as np
import pytest

import kerasattention as ka
from backends import tensor
from decoding_models import FEATURES, VOCABULARY
from kerasattention.decoding.graph.plan import make_plan
from kerasattention.decoding.order import PositionOrder

AT = np.array([[4, 0, 2], [0, 7, 9]])


def order_of(at=AT, segments=None, padding=None, mask=None, dtype="int32"):
    times = keras.Input((None,), dtype=dtype, name="times")
    tokens = keras.Input((None,), dtype="int32")
    given, further = [times], {}
    if segments is not None:
        further["segment_ids"] = keras.Input((None,), dtype="int32", name="segments")
        given.append(further["segment_ids"])
    x = keras.layers.Embedding(VOCABULARY, FEATURES)(tokens)
    layer = ka.MultiHeadAttention(2, 6, use_causal_mask=mask is None, mask=mask)
    plan = make_plan(keras.Model([*given, tokens], layer(x, positions=times, **further)))
    slots = {plan.program.specs[slot].name: slot for slot in plan.prompt_inputs}
    inputs = {slots["times"]: tensor(at, dtype)}
    if segments is not None:
        inputs[slots["segments"]] = tensor(segments, "int32")
    return PositionOrder(plan, inputs, 3, padding), slots["times"]


def test_new_positions_are_greater_than_all_before():
    order, slot = order_of()
    order.add({slot: np.array([[5, 6], [11, 10]])})
    order.add({slot: np.array([[7], [12]])})
    with pytest.raises(ValueError, match=r"'times' .*greater.*12 in row 2 of 2.*Received: 12"):
        order.add({slot: np.array([[8], [12]])})
    order.add({slot: np.array([[8], [13]])})  # what was refused was not taken
    with pytest.raises(ValueError, match=r"4 in row 1 of 2.*Received: 3"):
        order_of()[0].add({slot: np.array([[3], [10]])})


def test_tokens_that_see_no_later_one_do_not_count():
    segments = np.array([[1, 2, 2], [1, 1, 2]])
    order, slot = order_of(segments=segments)
    order.add({slot: np.array([[3], [10]])})
    order, slot = order_of(padding=np.array([1, 0]))
    order.add({slot: np.array([[3], [10]])})


def test_tokens_that_all_others_see_come_first():
    prefix = ka.CausalMask() | ka.PrefixMask(9)
    order, slot = order_of(mask=prefix)
    with pytest.raises(ValueError, match=r"at least 9 in row 1 of 2.*Received: 7"):
        order.add({slot: np.array([[7], [10]])})
    order, slot = order_of(mask=prefix, dtype="float32")
    with pytest.raises(ValueError, match=r"at least 9 in row 1 of 2.*Received: 8.5"):
        order.add({slot: np.array([[8.5], [10]])})
    order.add({slot: np.array([[9.0], [10]])})


@pytest.mark.parametrize(
    ("mask", "least"),
    [
        (ka.WindowMask(8, 1), 1),
        (ka.ChunkMask(1) & ka.WindowMask(5), 1),
        (ka.WindowMask(8, 1) & ka.CausalMask(), 0),
        (ka.WindowMask(3, 1) | ka.CausalMask(), 1),
        (None, 0),
    ],
)
def test_real_positions_are_as_far_behind_as_earlier_tokens_see(mask, least):
    order, slot = order_of(mask=mask, dtype="float32")
    if least == 0:
        order.add({slot: np.array([[4.5], [9.25]])})
        assert order.following(2, 0.5)[slot].tolist() == [[5.0, 5.5], [9.75, 10.25]]
        return
    with pytest.raises(ValueError, match=r"at least 5 in row 1 of 2.*Received: 4.5"):
        order.add({slot: np.array([[4.5], [10]])})
    order.add({slot: np.array([[5], [10]])})
    with pytest.raises(ValueError, match=r"`position_step` must be at least 1.*position_step=0.5"):
        order.following(2, 0.5)
    assert order.following(2, 1.0)[slot].tolist() == [[6, 7], [11, 12]]


def test_without_positions_there_is_nothing_to_do():
    tokens = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(VOCABULARY, FEATURES)(tokens)
    output = ka.MultiHeadAttention(2, 6, use_causal_mask=True)(x)
    PositionOrder(make_plan(keras.Model(tokens, output)), {}, 3, None).add({})
