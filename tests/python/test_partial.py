"""Attention to parts of the keys, merged, against the float64 reference of all keys."""

import functools

import numpy as np
import pytest

from backends import run, sampled, tensor, to_numpy, value_and_gradients
from kerasattention.attend import attend_to_part, merge, sink_part
from kerasattention.attend.api import expand_mask
from kerasattention.attend.bias import TensorBias
from kerasattention.attend.mask import AttentionMask
from problems import PROBLEMS

CLOSE = {"rtol": 1e-5, "atol": 5e-6}
# Where the parts begin: the last is longer, and masked out for causal queries.
BOUNDS = (0, 5, 7, 17)
NAMES = [
    "nothing hidden",
    "window, causal",
    "padded keys, causal",
    "a sample of padding",
    "segments, causal",
    "mask with empty rows",
    "bias (B, N, T, S), causal",
    "cap, bias, causal",
    "sink, empty rows",
]


def mask_of(given, start, stop):
    """The mask of all queries and the keys from start to stop."""
    fields = dict(given.mask_fields)
    fields["offset"] = fields.get("offset", 0) - start
    for name, axis in (("key_mask", 1), ("key_segments", 1), ("mask", -1)):
        if name in fields:
            fields[name] = np.take(fields[name], range(start, stop), axis=axis)
    described = {n: tensor(x) if isinstance(x, np.ndarray) else x for n, x in fields.items()}
    if "mask" in described:
        described["mask"] = expand_mask(described["mask"], "mask")
    return AttentionMask(**described)


def attend_in_parts(given, order, query, key, value, bias=None, sink=None):
    parts = []
    for index in order:
        start, stop = BOUNDS[index], BOUNDS[index + 1]
        biases = [] if bias is None else [TensorBias(bias[..., start:stop])]
        parts.append(
            attend_to_part(
                query,
                key[:, start:stop],
                value[:, start:stop],
                mask_of(given, start, stop),
                biases=biases,
                scale=given.scale,
                soft_cap=given.cap,
            )
        )
    if sink is not None:
        parts.append(sink_part(sink, parts[0]))
    return functools.reduce(merge, parts)


@pytest.mark.parametrize("name", sampled(NAMES, [NAMES[i] for i in (3, 4, 7, 8)]))
def test_merged_parts_are_the_whole(name):
    given = PROBLEMS[name]
    order = (2, 0, 1)
    (output, lse), gradients = value_and_gradients(
        lambda **x: attend_in_parts(given, order, **x),
        {name: tensor(x) for name, x in given.trainable().items()},
        tensor(given.upstream),
    )
    np.testing.assert_allclose(output, given.expected[0], **CLOSE)
    empty = ~given.seen.any(axis=-1).transpose(0, 2, 1)[..., None]  # (B, T, N, 1)
    if given.sink is None:
        np.testing.assert_array_equal(np.isneginf(lse), np.broadcast_to(empty, lse.shape))
    for name, gradient in gradients.items():
        np.testing.assert_allclose(
            gradient, given.expected_gradients[name], **CLOSE, err_msg=f"d {name}"
        )


def test_the_log_sum_exp_is_that_of_the_logits():
    given = PROBLEMS["causal from an offset"]
    inputs = [tensor(x) for x in (given.query, given.key, given.value)]
    _, lse = run(lambda *x: tuple(attend_in_parts(given, (0, 1, 2), *x)), *inputs)
    groups = given.query.shape[2] // given.key.shape[2]
    key = np.repeat(given.key, groups, axis=2)
    logits = np.einsum("btnh,bsnh->btns", given.query, key) / np.sqrt(given.query.shape[-1])
    weights = np.where(given.seen.transpose(0, 2, 1, 3), np.exp(logits), 0.0)
    np.testing.assert_allclose(to_numpy(lse)[..., 0], np.log(weights.sum(-1)), **CLOSE)


def test_masked_out_nan_reaches_no_part():
    given = PROBLEMS["padded keys, causal"]
    key, value = given.key.copy(), given.value.copy()
    key[1, :9], value[1, :9] = np.nan, np.inf
    inputs = [tensor(x) for x in (given.query, key, value)]
    output, _ = run(lambda *x: tuple(attend_in_parts(given, (0, 1, 2), *x)), *inputs)
    np.testing.assert_allclose(to_numpy(output), given.expected[0], **CLOSE)
