"""Biases that are products of queries and keys with relative keys, in the kernels."""

import dataclasses

import numpy as np
import pytest

import reference
from backends import BACKEND, double, sampled, tensor, to_numpy, value_and_gradients
from kerasattention.attend import api
from kerasattention.attend.bias import SumOfBiases, TensorBias
from kerasattention.attend.bias import of_heads as bias_of_heads
from kerasattention.attend.mask import AttentionMask
from kerasattention.attend.tensors import KeySpans, Span, slice_axis
from kerasattention.positions.key_bias import KeyBias
from kerasattention.positions.offsets import divided
from position_reference import KEYS_PER_SAMPLE, PER_SAMPLE, B, K, N, S, T, numbers
from problems import block_size

M, H, SCALE = 3, 6, 0.3
# Not all rows, and some twice, as buckets have it.
ENTRIES = {"each": tuple(range(7)), "buckets": (4, 4, 2, 3, 1, 0, 0)}
PLACES = {
    "from 0": {},
    "causal, window, offset": {"causal": True, "window": 5, "offset": 3},
    "offset of a cache": {"causal": True, "offset": np.array(4)},
    "of each sample": {
        "causal": True,
        "query_positions": PER_SAMPLE % 19,
        "key_positions": KEYS_PER_SAMPLE % 19,
    },
}


def arrays_of(table_heads, sees_keys, entries):
    rows = max(entries) + 1
    found = {
        "query": numbers(B, T, N, H),
        "key": numbers(B, S, K, H, seed=1),
        "value": numbers(B, S, K, 5, seed=2),
        "table": numbers(rows, table_heads, H, seed=3),
    }
    if sees_keys:
        found["own"] = numbers(B, S, N, H, seed=5)
        found["key_table"] = numbers(rows, table_heads, H, seed=6)
    return found


def places_of(options):
    offset = int(options.get("offset", 0))
    here = options.get("query_positions", np.arange(T) + offset)
    there = options.get("key_positions", np.arange(S))
    return np.broadcast_to(here, (B, T)), np.broadcast_to(there, (B, S))


def rows_of(here, there, entries):
    """(B, T, S): the row of each pair."""
    distances = there[:, None, :] - here[:, :, None]
    return np.array(entries)[np.clip(distances, -M, M) + M]


def expected_bias(arrays, rows):
    """(B, N, T, S), pair by pair."""
    bias = np.zeros((B, N, *rows.shape[1:]))
    for b, n, t, s in np.ndindex(*bias.shape):
        row = rows[b, t, s]
        table = arrays["table"][row, min(n, arrays["table"].shape[1] - 1)]
        bias[b, n, t, s] = SCALE * arrays["query"][b, t, n] @ table
        if "own" in arrays:
            table = arrays["key_table"][row, min(n, arrays["key_table"].shape[1] - 1)]
            bias[b, n, t, s] += SCALE * arrays["own"][b, s, n] @ table
    return bias


def expected_gradients(arrays, rows, of_bias):
    """Of the bias's tensors for the gradient of the bias (B, N, T, S)."""
    found = {name: np.zeros(x.shape) for name, x in arrays.items()}
    for b, n, t, s in np.ndindex(*of_bias.shape):
        row, head = rows[b, t, s], min(n, arrays["table"].shape[1] - 1)
        step = SCALE * of_bias[b, n, t, s]
        found["query"][b, t, n] += step * arrays["table"][row, head]
        found["table"][row, head] += step * arrays["query"][b, t, n]
        if "own" in arrays:
            found["own"][b, s, n] += step * arrays["key_table"][row, head]
            found["key_table"][row, head] += step * arrays["own"][b, s, n]
    return found


def bias_of(query, table, own=None, key_table=None, entries=ENTRIES["each"]):
    return KeyBias(
        query, table, entries, SCALE, key=own, key_table=key_table, sees_keys=own is not None
    )


CASES = [
    (place, implementation, sees_keys)
    for place in PLACES
    for implementation in ("plain", "blocked")
    for sees_keys in (False, True)
]
ON_JAX = [
    ("from 0", "blocked", True),
    ("causal, window, offset", "blocked", False),
    ("offset of a cache", "plain", True),
    ("of each sample", "blocked", True),
]


@pytest.mark.parametrize(("place", "implementation", "sees_keys"), sampled(CASES, ON_JAX))
def test_output_and_gradients_by_kernel(place, implementation, sees_keys):
    options = PLACES[place]
    entries = ENTRIES["buckets" if sees_keys else "each"]
    arrays = arrays_of(N if sees_keys else 1, sees_keys, entries)
    here, there = places_of(options)
    rows = rows_of(here, there, entries)
    bias = expected_bias(arrays, rows)
    seen = reference.visible(
        B,
        N,
        T,
        S,
        causal=options.get("causal", False),
        window=options.get("window"),
        query_positions=here,
        key_positions=there,
    )
    named = {name: arrays[name] for name in ("query", "key", "value")} | {"seen": seen}
    upstream = numbers(B, T, N, 5, seed=4)
    expected, _ = reference.attention(**named, bias=bias)
    gradients = reference.attention_gradients(**named, bias=bias, upstream=upstream)
    of_bias = expected_gradients(arrays, rows, gradients["bias"])
    described = {k: tensor(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}

    def ours(query, key, value, table, own=None, key_table=None):
        made = bias_of(query, table, own, key_table, entries)
        mask = AttentionMask(**described)
        return (api.attend(query, key, value, mask, biases=[made], implementation=implementation),)

    with block_size(5):
        (output,), found = value_and_gradients(
            ours, {name: tensor(x) for name, x in arrays.items()}, tensor(upstream)
        )
    np.testing.assert_allclose(output, expected, atol=2e-5)
    for name, gradient in found.items():
        wanted = of_bias[name] + gradients.get(name, 0.0)
        np.testing.assert_allclose(gradient, wanted, atol=1e-4, err_msg=name)


def test_blocks_of_several_spans_and_sums():
    """Blocks of one query, of one key, and of spans, each a part of the whole bias."""
    arrays = {name: tensor(x) for name, x in arrays_of(N, True, ENTRIES["each"]).items()}
    made = bias_of(arrays["query"], arrays["table"], arrays["own"], arrays["key_table"])
    mask = AttentionMask()
    whole = to_numpy(made.block(mask, Span(0, T), Span(0, S)))
    for rows, columns in ((Span(4, 1), Span(0, S)), (Span(2, 5), Span(7, 1))):
        part = to_numpy(made.block(mask, rows, columns))
        wanted = whole[:, :, rows.start : rows.stop, columns.start : columns.stop]
        np.testing.assert_allclose(part, wanted, atol=1e-5)
    spans = KeySpans((Span(1, 2), Span(9, 4)))
    part = to_numpy(made.block(mask, Span(3, 4), spans))
    np.testing.assert_allclose(part, whole[:, :, 3:7][..., [1, 2, 9, 10, 11, 12]], atol=1e-5)
    upstream = tensor(numbers(B, N, 4, 6, seed=8))
    found = made.block_gradient(upstream, mask, Span(3, 4), spans)
    wide = np.zeros((B, N, T, S))
    wide[:, :, 3:7, [1, 2, 9, 10, 11, 12]] = to_numpy(upstream)
    expected = made.block_gradient(tensor(wide), mask, Span(0, T), Span(0, S))
    for name, x in expected.items():
        np.testing.assert_allclose(to_numpy(found[name]), to_numpy(x), atol=1e-4, err_msg=name)
    other = TensorBias(tensor(numbers(1, 1, T, S)))
    both = SumOfBiases((other, made))
    assert set(both.differentiable()) == {
        "0/attention_bias",
        *(f"1/{name}" for name in ("query", "table", "key", "key_table")),
    }
    frame = both.with_tensors(dict.fromkeys(both.tensors()))
    again = frame.with_tensors(both.tensors())
    summed = to_numpy(again.block(mask, Span(0, T), Span(0, S)))
    np.testing.assert_allclose(summed, whole + to_numpy(other.bias), atol=1e-5)


def test_keys_beyond_the_largest_distance_share_a_row():
    mask = AttentionMask(offset=1)
    parts = divided(mask, M, Span(8, 2), Span(1, 20))  # queries at 9 and 10
    assert parts == [(Span(1, 6), -1), (Span(7, 6), None), (Span(13, 8), 1)]
    assert divided(mask, M, Span(8, 2), Span(14, 3)) == [(Span(14, 3), 1)]


def test_float64_is_kept(doubles):
    arrays = arrays_of(1, False, ENTRIES["each"])
    rows = rows_of(*places_of({}), ENTRIES["each"])
    made = bias_of(double(arrays["query"]), double(arrays["table"])).in_precision("float64")
    found = to_numpy(made.block(AttentionMask(), Span(0, T), Span(0, S)))
    np.testing.assert_allclose(found, expected_bias(arrays, rows), rtol=1e-12, atol=1e-12)
    given = {"query_positions": tensor(np.arange(T)), "key_positions": tensor(np.arange(S))}
    found = to_numpy(made.block(AttentionMask(**given), Span(0, T), Span(0, S)))
    np.testing.assert_allclose(found, expected_bias(arrays, rows), rtol=1e-12, atol=1e-12)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="other backends know lengths")
def test_unknown_lengths():
    import tensorflow as tf

    arrays = arrays_of(N, True, ENTRIES["each"])
    names = list(arrays)
    signature = [tf.TensorSpec((None, None, *arrays[name].shape[2:])) for name in names[:3]]
    signature += [tf.TensorSpec(arrays["table"].shape), tf.TensorSpec((None, None, N, H))]
    signature += [tf.TensorSpec(arrays["key_table"].shape)]

    @tf.function(input_signature=signature)
    def attend(*given):
        named = dict(zip(names, given, strict=True))
        with tf.GradientTape() as tape:
            tape.watch(given)
            made = bias_of(named["query"], named["table"], named["own"], named["key_table"])
            output = api.attend(
                *(named[name] for name in ("query", "key", "value")),
                AttentionMask(causal=True),
                biases=[made],
                implementation="blocked",
            )
            total = tf.reduce_sum(output**2)
        return output, tape.gradient(total, given)

    with block_size(4):
        output, found = attend(*(tensor(x) for x in arrays.values()))
    rows = rows_of(*places_of({}), ENTRIES["each"])
    named = {name: arrays[name] for name in ("query", "key", "value")}
    named["seen"] = reference.visible(B, N, T, S, causal=True)
    bias = expected_bias(arrays, rows)
    expected, _ = reference.attention(**named, bias=bias)
    np.testing.assert_allclose(to_numpy(output), expected, atol=1e-5)
    gradients = reference.attention_gradients(**named, bias=bias, upstream=2 * expected)
    of_bias = expected_gradients(arrays, rows, gradients["bias"])
    for name, gradient in zip(names, found, strict=True):
        wanted = of_bias[name] + gradients.get(name, 0.0)
        np.testing.assert_allclose(to_numpy(gradient), wanted, atol=3e-4, err_msg=name)


@pytest.mark.skipif(BACKEND != "torch", reason="the kernels' own backward passes are alike in this")
def test_gradients_of_gradients_are_those_of_the_plain_kernel():
    import torch

    arrays = arrays_of(N, True, ENTRIES["each"])

    def second(implementation):
        named = {name: tensor(x).requires_grad_(True) for name, x in arrays.items()}
        made = bias_of(named["query"], named["table"], named["own"], named["key_table"])
        output = api.attend(
            *(named[name] for name in ("query", "key", "value")),
            AttentionMask(causal=True),
            biases=[made],
            implementation=implementation,
        )
        leaves = list(named.values())
        first = torch.autograd.grad((output**2).sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum((x**2).sum() for x in first), leaves)

    with block_size(5):
        found = second("blocked")
    for x, y in zip(found, second("plain"), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("sees_keys", [False, True])
@pytest.mark.parametrize("table_heads", [1, N])
def test_gradients_of_some_heads_are_added_in_their_place(table_heads, sees_keys):
    arrays = arrays_of(table_heads, sees_keys, ENTRIES["each"])
    names = {"query": "query", "table": "table", "own": "key", "key_table": "key_table"}
    given = {names[name]: tensor(x) for name, x in arrays.items() if name in names}
    bias = KeyBias(given.pop("query"), given.pop("table"), ENTRIES["each"], SCALE, **given)
    bias = dataclasses.replace(bias, sees_keys=sees_keys)
    mask, rows, columns = AttentionMask(), Span(2, 4), Span(1, 9)
    bias = bias.with_shared_products(mask)
    gradient = tensor(numbers(B, N, rows.size, columns.size, seed=9))

    def zeros():
        return {name: x * 0.0 for name, x in bias.tensors().items()}

    expected = bias.add_gradients(zeros(), gradient, mask, rows, columns)
    found = zeros()
    for heads in (Span(N - 1, 1), Span(0, N - 1)):
        part, of_heads = slice_axis(gradient, 1, heads), bias_of_heads(bias, heads)
        found = of_heads.add_gradients(found, part, mask, rows, columns, heads)
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        np.testing.assert_allclose(to_numpy(found[name]), to_numpy(x), rtol=1e-5, atol=1e-5)
