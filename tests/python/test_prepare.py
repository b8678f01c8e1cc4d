"""`make_inputs()`: its defaults, how it groups heads, and what it refuses."""

import numpy as np
import pytest

from backends import tensor, to_numpy
from kerasattention.attend.bias import TensorBias
from kerasattention.attend.mask import AttentionMask
from kerasattention.attend.prepare import (
    broadcast_unknown_axes,
    check_heads,
    expand_mask,
    make_inputs,
)

B, T, S, N, K, H, HV = 2, 5, 7, 6, 3, 11, 13
G = N // K


def numbers(*shape):
    return np.random.default_rng(1).normal(size=shape).astype("float32")


QUERY, KEY, VALUE = numbers(B, T, N, H), numbers(B, S, K, H), numbers(B, S, K, HV)


def made(**options):
    return make_inputs(*map(tensor, (QUERY, KEY, VALUE)), AttentionMask(), **options)


def same(found, expected):
    np.testing.assert_array_equal(to_numpy(found), expected)


def test_heads_are_grouped_and_stand_before_the_tokens():
    inputs = made()
    same(inputs.query, QUERY.reshape(B, T, K, G, H).transpose(0, 2, 3, 1, 4))
    same(inputs.key, KEY.transpose(0, 2, 1, 3))
    same(inputs.value, VALUE.transpose(0, 2, 1, 3))


def test_defaults():
    inputs = made()
    assert inputs.scale == pytest.approx(H**-0.5)
    assert (inputs.bias, inputs.sink, inputs.seed, inputs.soft_cap) == (None,) * 4
    assert inputs.rate == 0.0


def test_options_arrive():
    sink, bias = numbers(N), numbers(1, N, T, S)
    inputs = made(
        scale=0.25,
        soft_cap=3.0,
        sink=tensor(sink),
        rate=0.5,
        seed=tensor(np.array([3, 5])),
        biases=[TensorBias(tensor(bias))],
    )
    assert (inputs.scale, inputs.soft_cap, inputs.rate) == (0.25, 3.0, 0.5)
    same(inputs.sink, sink.reshape(K, G))
    same(inputs.seed, [3, 5])
    same(inputs.bias.tensors()["attention_bias"], bias)
    # Without dropout nothing draws a seed.
    assert made(seed=tensor(np.array([3, 5]))).seed is None


def test_a_mask_of_two_or_three_axes_gets_the_others():
    bare, batched, full = numbers(T, S) > 0, numbers(B, T, S) > 0, numbers(B, N, T, S) > 0
    same(expand_mask(tensor(bare), "mask"), bare[None, None])
    same(expand_mask(tensor(batched), "mask"), batched[:, None])
    same(expand_mask(tensor(full), "mask"), full)
    assert expand_mask(None, "mask") is None
    with pytest.raises(
        ValueError,
        match=r"^`mask` must have shape \(T, S\), \(B, T, S\), \(B, 1, T, S\) or "
        r"\(B, N, T, S\)\. Received shape \(7,\)$",
    ):
        expand_mask(tensor(bare[0]), "mask")


def test_known_axes_are_left_as_they_are():
    x = tensor(numbers(1, 1, T, S))
    assert broadcast_unknown_axes(x, (N, T, S)) is x


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": (B, T, N * H)}, r"`query` must have 4 axes \(batch, length, heads, size\)"),
        ({"value": (B, S, K)}, "`value` must have 4 axes"),
        ({"query": (B, T, N + 1, H)}, "heads of `query` must be a multiple of the heads of `key`"),
        ({"key": (B, S, K, H + 1)}, "`query` and `key` must have one head size"),
        ({"value": (B, S + 1, K, HV)}, "`key` and `value` must agree in length and heads"),
        ({"value": (B, S, K + 1, HV)}, "`key` and `value` must agree in length and heads"),
    ],
)
def test_shapes_that_do_not_belong_together_are_refused(change, message):
    shapes = {"query": (B, T, N, H), "key": (B, S, K, H), "value": (B, S, K, HV)}
    check_heads(*map(np.zeros, shapes.values()))
    shapes |= change
    received = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    with pytest.raises(ValueError, match=message) as error:
        check_heads(*map(np.zeros, shapes.values()))
    assert str(error.value).endswith(f". Received: {received}")
