"""How an attention call is run: its result, a device's part of it, and what a ring refuses."""

import numpy as np
import pytest

import reference
from backends import tensor, to_numpy
from kerasattention.attend.bias import TensorBias
from kerasattention.attend.mask import AttentionMask
from kerasattention.attend.prepare import make_inputs
from kerasattention.attend.run import Run, _check_ring_options, _DeviceCall, _with_both_positions
from kerasattention.attend.tensors import Span
from kerasattention.positions.relative import RelativePosition

B, T, N, K, H, HV = 3, 5, 6, 3, 7, 2
CLOSE = {"rtol": 1e-5, "atol": 2e-6}
RNG = np.random.default_rng(1)
ARRAYS = [RNG.normal(size=(B, T, heads, size)) for heads, size in ((N, H), (K, H), (K, HV))]
BIAS = RNG.normal(size=(1, N, T, T))
PADDING = np.arange(T) < np.array([[5], [3], [1]])


@pytest.mark.parametrize("return_scores", [False, True])
def test_rows_of_padded_queries_are_zero_and_scores_come_if_asked_for(return_scores):
    mask = AttentionMask(causal=True, query_mask=tensor(PADDING))
    found = Run(return_scores, None, False, None)(make_inputs(*map(tensor, ARRAYS), mask))
    seen = np.broadcast_to(np.tri(T, dtype=bool), (B, N, T, T))
    expected, weights = reference.attention(*ARRAYS, seen=seen)
    expected = np.where(PADDING[:, :, None, None], expected, 0.0)
    np.testing.assert_allclose(to_numpy(found[0]), expected, **CLOSE)
    assert len(found) == (2 if return_scores else 1)
    if return_scores:
        np.testing.assert_allclose(to_numpy(found[1])[PADDING.nonzero()[0][0]], weights[0], **CLOSE)


def test_two_devices_give_the_parts_of_one_call():
    """Samples 1 and 2 and the query heads of key head 2, with the dropout that they have."""
    mask = AttentionMask(causal=True, key_mask=tensor(PADDING))
    sink, seed = RNG.normal(size=N), np.array([3, 5])
    whole = Run(False, "plain", False, None)(
        make_inputs(
            *map(tensor, ARRAYS),
            mask,
            biases=[TensorBias(tensor(BIAS))],
            sink=tensor(sink),
            seed=tensor(seed),
            rate=0.5,
            scale=0.25,
        )
    )
    frame = TensorBias(tensor(BIAS)).with_tensors({"attention_bias": None})
    call = _DeviceCall(
        Run(False, "plain", False, None),
        mask.without_tensors(),
        frame,
        (("rate", 0.5), ("scale", 0.25)),
    )
    query, key, value = ARRAYS
    part = {
        "query": query[1:, :, 4:],
        "key": key[1:, :, 2:],
        "value": value[1:, :, 2:],
        "sink": sink[4:],
        "seed": seed,
        "mask/key_mask": PADDING[1:],
        "bias/attention_bias": BIAS[:, 4:],
        "first_sample": np.array(1),
        "first_head": np.array(4),
    }
    (found,) = call({name: tensor(x) for name, x in part.items()})
    np.testing.assert_allclose(to_numpy(found), to_numpy(whole[0])[1:, :, 4:], **CLOSE)


def refused(run=False, mask=None, biases=()):
    _check_ring_options(Run(run, None, False, None), AttentionMask(**(mask or {})), list(biases))


def test_a_ring_refuses_what_has_a_number_for_each_query_and_key():
    tokens = tensor(np.ones((B, T), "int32"))
    refused(
        mask={"causal": True, "query_segments": tokens, "key_segments": tokens, "key_mask": tokens}
    )
    table = RelativePosition(8, 16)
    table.prepare(N, H)
    refused(biases=[None, table.block_bias(N, True)])
    for given, name in (
        ({"run": True}, "return_attention_scores"),
        ({"mask": {"mask": tensor(np.ones((1, 1, T, T), bool))}}, "attention_mask"),
        ({"biases": [None, TensorBias(tensor(BIAS))]}, "attention_bias"),
    ):
        with pytest.raises(ValueError) as error:
            refused(**given)
        assert str(error.value) == (
            f"`{name}` is not supported where sequences are split over devices."
        )


def test_a_ring_has_the_positions_of_queries_and_of_keys_or_neither():
    plain = AttentionMask(causal=True)
    assert _with_both_positions(plain, T, 7) is plain
    at = tensor(np.array([[3, 4, 5, 6, 9]] * B, "int32"))
    found = _with_both_positions(AttentionMask(causal=True, query_positions=at, offset=2), T, 7)
    assert found.offset == 0
    assert to_numpy(found.key_positions).tolist() == list(range(7))
    own = AttentionMask(causal=True, query_positions=at, offset=2)
    np.testing.assert_array_equal(
        to_numpy(found.query_positions), to_numpy(own.positions_of_queries(Span(0, T)))
    )
