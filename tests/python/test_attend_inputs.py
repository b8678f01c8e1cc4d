"""`AttentionInputs`: its tensors by name, its precision, and what is known of its rows."""

import dataclasses

import numpy as np
import pytest

import reference
from backends import tensor, to_numpy
from kerasattention.attend import api
from kerasattention.attend.bias import TensorBias
from kerasattention.attend.mask import AttentionMask

B, T, S, N, K, H, HV = 2, 5, 7, 6, 3, 11, 13


def numbers(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape)


def made(mask=None, dtype="float32", bias=None, keys=S, **options):
    arrays = (numbers(B, T, N, H), numbers(B, keys, K, H), numbers(B, keys, K, HV))
    biases = [] if bias is None else [TensorBias(tensor(bias))]
    mask = AttentionMask(**(mask or {}))
    return api.make_inputs(*(tensor(x, dtype) for x in arrays), mask, biases=biases, **options)


def full():
    padding = tensor(np.ones((B, S), bool))
    return made(
        {"key_mask": padding, "causal": True, "query_positions": tensor(np.arange(T))},
        bias=numbers(1, N, T, S),
        sink=tensor(numbers(N)),
        rate=0.5,
        seed=tensor(np.array([3, 5])),
    )


def test_tensors_go_out_and_come_back_by_name():
    inputs = full()
    named = inputs.tensors()
    ours = {"query", "key", "value", "sink", "seed", "bias/attention_bias"}
    assert named.keys() == ours | {"mask/key_mask", "mask/query_positions"}
    again = inputs.with_tensors({name: (name, x) for name, x in named.items()}).tensors()
    assert all(again[name] == (name, named[name]) for name in named)
    assert inputs.differentiable() == ["query", "key", "value", "sink", "bias/attention_bias"]
    samples = [name for name in named if inputs.has_samples(name)]
    assert sorted(samples) == ["key", "mask/key_mask", "query", "value"]


def test_offsets_are_tensors_where_a_device_has_a_part():
    """Numbers stay numbers; tensors go out, and come back, by name."""
    inputs, one, two = made(), tensor(np.array(1)), tensor(np.array(2))
    assert "first_sample" not in inputs.tensors()
    assert "seed" not in inputs.tensors()
    part = dataclasses.replace(inputs, first_sample=one, first_head=two)
    named = part.tensors()
    assert (named["first_sample"], named["first_head"]) == (one, two)
    again = inputs.with_tensors(named)
    assert (again.first_sample, again.first_head) == (one, two)
    kept = part.with_tensors(inputs.tensors())
    assert (kept.first_sample, kept.first_head) == (one, two)
    bare = part.without_tensors()
    assert (bare.first_sample, bare.first_head, bare.query, bare.key, bare.value) == (None,) * 5
    assert inputs.without_tensors().first_sample == 0


def test_without_tensors_equal_calls_are_equal_and_hashable():
    first, second = full().without_tensors(), full().without_tensors()
    assert first == second
    assert hash(first) == hash(second)
    assert first != made(scale=0.5).without_tensors()


def test_heads_and_sizes():
    inputs = made()
    assert (inputs.kv_heads, inputs.groups) == (K, N // K)
    assert (tuple(inputs.rows()), tuple(inputs.columns())) == ((0, T), (0, S))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, False),
        ({"mask": {"causal": True}}, False),
        ({"mask": {"window": 3}}, True),
        ({"mask": {"causal": True, "offset": -2}}, True),
        ({"mask": {"key_mask": np.ones((B, S), bool)}}, True),
        ({"bias": np.zeros((1, 1, T, S))}, True),  # may be minus infinity
        ({"keys": 0}, True),
    ],
)
def test_whether_a_row_may_see_no_key(options, expected):
    assert made(**options).may_be_empty is expected


def test_the_scale_goes_into_the_query_and_low_precision_is_widened():
    inputs = made(dtype="float16", scale=0.25)
    assert inputs.accumulator == "float32"
    scaled = inputs.scaled()
    assert scaled.scale == 1.0
    assert all("float32" in str(x.dtype) for x in (scaled.query, scaled.key, scaled.value))
    np.testing.assert_array_equal(to_numpy(scaled.query), to_numpy(inputs.query) * 0.25)
    np.testing.assert_array_equal(to_numpy(scaled.key), to_numpy(inputs.key))
    as_it_is = made(scale=1.0)
    assert as_it_is.scaled().query is as_it_is.query
    np.testing.assert_allclose(made().scale, H**-0.5)


@pytest.mark.parametrize("implementation", ["plain", "blocked"])
def test_causal_queries_before_the_first_key_are_zero(implementation):
    arrays = [numbers(B, T, N, H), numbers(B, S, K, H), numbers(B, S, K, HV)]
    mask = AttentionMask(causal=True, offset=-2)
    found = api.attend(*(tensor(x) for x in arrays), mask, implementation=implementation)
    seen = np.arange(S) <= np.arange(T)[:, None] - 2
    expected, _ = reference.attention(*arrays, seen=np.broadcast_to(seen, (B, N, T, S)))
    np.testing.assert_allclose(to_numpy(found), expected, atol=1e-5)
