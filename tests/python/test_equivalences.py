"""Pairs of calls that must agree, output and gradients: the left side blocked, the right plain.

Each row of the table below builds two functions of the same tensors. Gradients are compared
too, so that copies, slices and permutations are undone by differentiation itself.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from keras import ops

from backends import sampled, tensor, value_and_gradients
from kerasattention import scaled_dot_product_attention
from kerasattention.attend import api
from kerasattention.attend.mask import AttentionMask
from problems import HV, SMALL_BLOCK, B, G, H, K, N, T, block_size

RNG = np.random.default_rng(11)
CLOSE = {"rtol": 1e-5, "atol": 5e-6}


@dataclasses.dataclass
class Pair:
    """Two functions of (query, key, value, kernel) that should agree."""

    left: Callable
    right: Callable
    heads: int = N
    kv_heads: int = K
    length: int = T


def sdpa(query, key, value, kernel, **options):
    return scaled_dot_product_attention(query, key, value, implementation=kernel, **options)


def with_options(**options):
    return lambda q, k, v, kernel: sdpa(q, k, v, kernel, **options)


def head(x, index):
    return x[:, :, index : index + 1]


def each_head_alone(q, k, v, kernel):
    parts = [
        sdpa(head(q, n), head(k, n), head(v, n), kernel, causal=True) for n in range(q.shape[2])
    ]
    return ops.concatenate(parts, axis=2)


def copied_heads(q, k, v, kernel):
    return sdpa(q, ops.repeat(k, G, axis=2), ops.repeat(v, G, axis=2), kernel, causal=True)


PERMUTATION = RNG.permutation(T)
MASK = RNG.random((B, N, T, T)) < 0.7
MASK[0, 2, 5] = False
BIAS = RNG.normal(size=(B, 1, T, T))


def permuted_keys(q, k, v, kernel):
    k, v = (ops.take(x, PERMUTATION, axis=1) for x in (k, v))
    bias = BIAS[..., PERMUTATION].astype("float32")
    return sdpa(q, k, v, kernel, attention_mask=MASK[..., PERMUTATION], attention_bias=bias)


HEAD_ORDER = RNG.permutation(K)


def permuted_heads(q, k, v, kernel):
    query_order = np.concatenate([np.arange(G) + G * k for k in HEAD_ORDER])
    q = ops.take(q, query_order, axis=2)
    k, v = (ops.take(x, HEAD_ORDER, axis=2) for x in (k, v))
    output = sdpa(q, k, v, kernel, attention_mask=MASK[:, query_order])
    return ops.take(output, np.argsort(query_order), axis=2)


PREFIX = 5


def prefix_of_output(q, k, v, kernel):
    return sdpa(q, k, v, kernel, causal=True)[:, :PREFIX]


def output_of_prefix(q, k, v, kernel):
    return sdpa(*(x[:, :PREFIX] for x in (q, k, v)), kernel, causal=True)


def last_steps_of_output(q, k, v, kernel):
    return sdpa(q, k, v, kernel, causal=True, sliding_window=4)[:, -3:]


def output_of_last_steps(q, k, v, kernel):
    mask = AttentionMask(causal=True, window=4, offset=T - 3)
    return api.attend(q[:, -3:], k, v, mask, implementation=kernel)


def steps_one_by_one(q, k, v, kernel):
    steps = [
        api.attend(
            q[:, t : t + 1],
            k[:, : t + 1],
            v[:, : t + 1],
            AttentionMask(causal=True, offset=t),
            implementation=kernel,
        )
        for t in (0, 4, T - 1)
    ]
    return ops.concatenate(steps, axis=1)


def some_steps(q, k, v, kernel):
    return ops.take(sdpa(q, k, v, kernel, causal=True), [0, 4, T - 1], axis=1)


KEPT = 9


def padded(q, k, v, kernel):
    padding = np.broadcast_to(np.arange(T) < KEPT, (B, 1, 1, T))
    return sdpa(q, k, v, kernel, attention_mask=padding)


def shorter(q, k, v, kernel):
    return sdpa(q, k[:, :KEPT], v[:, :KEPT], kernel)


SPLIT = 4


def packed(q, k, v, kernel):
    segments = np.array([[1] * SPLIT + [2] * (T - SPLIT)] * B)
    return sdpa(q, k, v, kernel, segment_ids=segments, causal=True)


def apart(q, k, v, kernel):
    return ops.concatenate(
        [sdpa(*(x[:, part] for x in (q, k, v)), kernel, causal=True) for part in HALVES], axis=1
    )


HALVES = [slice(0, SPLIT), slice(SPLIT, T)]


def positions_turned(q, k, v, kernel):
    """Tokens in another order with their positions: the causal rule follows the positions."""
    order = np.stack([PERMUTATION, PERMUTATION[::-1]])
    positions = tensor(order)
    q, k, v = (ops.stack([ops.take(x[b], order[b], axis=0) for b in range(B)]) for x in (q, k, v))
    mask = AttentionMask(causal=True, window=6, query_positions=positions, key_positions=positions)
    output = api.attend(q, k, v, mask, implementation=kernel)
    return ops.stack([ops.take(output[b], np.argsort(order[b]), axis=0) for b in range(B)], axis=0)


TRIANGLE = np.tril(np.ones((T, T), dtype=bool))
BAND = np.abs(np.subtract.outer(np.arange(T), np.arange(T))) < 4
HIDING_BIAS = np.where(MASK, 0.0, -np.inf).astype("float32")

PAIRS = {
    "as many key as query heads: each head alone": Pair(
        with_options(causal=True), each_head_alone, heads=K
    ),
    "one key head: each head against it": Pair(
        with_options(causal=True),
        lambda q, k, v, kernel: ops.concatenate(
            [sdpa(head(q, n), k, v, kernel, causal=True) for n in range(G)], axis=2
        ),
        heads=G,
        kv_heads=1,
    ),
    "groups: copied heads": Pair(with_options(causal=True), copied_heads),
    "permuted keys, masks and biases": Pair(
        with_options(attention_mask=MASK, attention_bias=BIAS.astype("float32")), permuted_keys
    ),
    "permuted heads": Pair(with_options(attention_mask=MASK), permuted_heads),
    "a causal prefix": Pair(prefix_of_output, output_of_prefix, length=PREFIX),
    "last steps from an offset": Pair(last_steps_of_output, output_of_last_steps, length=3),
    "a step at a time": Pair(some_steps, steps_one_by_one, length=3),
    "a window as wide as T": Pair(with_options(), with_options(sliding_window=T)),
    "a causal window as wide as T": Pair(
        with_options(causal=True), with_options(causal=True, sliding_window=T)
    ),
    "padding: the shorter sequence": Pair(padded, shorter),
    "segments: sequences apart": Pair(packed, apart),
    "positions: order does not matter": Pair(
        with_options(causal=True, sliding_window=6), positions_turned
    ),
    "causal: a triangular mask": Pair(
        with_options(causal=True), with_options(attention_mask=TRIANGLE)
    ),
    "window: a band of a mask": Pair(
        with_options(sliding_window=4), with_options(attention_mask=BAND)
    ),
    "mask: minus infinity in the bias": Pair(
        with_options(attention_mask=MASK), with_options(attention_bias=HIDING_BIAS)
    ),
    "mask and causal: one mask": Pair(
        with_options(attention_mask=MASK, causal=True),
        with_options(attention_mask=MASK & TRIANGLE),
    ),
    "a constant bias: none": Pair(
        with_options(causal=True),
        with_options(causal=True, attention_bias=np.full((T, T), 3.5, "float32")),
    ),
    "a bias per query: none": Pair(
        with_options(attention_bias=BIAS[:, :, :, :1].astype("float32")), with_options()
    ),
    "scale: a scaled query": Pair(
        with_options(scale=0.3),
        lambda q, k, v, kernel: sdpa(q * (0.3 * H**0.5), k, v, kernel),
    ),
    "a cap out of reach: none": Pair(with_options(), with_options(logit_soft_cap=1e4)),
    "a sink out of reach: none": Pair(
        with_options(), with_options(sink=np.full(N, -1e4, "float32"))
    ),
    "a sink of zero: one more key and value of zeros": Pair(
        with_options(sink=np.zeros(N, "float32")),
        lambda q, k, v, kernel: sdpa(
            q, *(ops.concatenate([x, x[:, :1] * 0], axis=1) for x in (k, v)), kernel
        ),
    ),
    "values in parts": Pair(
        with_options(causal=True),
        lambda q, k, v, kernel: ops.concatenate(
            [
                sdpa(q, k, v[..., :4], kernel, causal=True),
                sdpa(q, k, v[..., 4:], kernel, causal=True),
            ],
            axis=-1,
        ),
    ),
    "samples apart": Pair(
        with_options(attention_mask=MASK),
        lambda q, k, v, kernel: ops.concatenate(
            [
                sdpa(*(x[b : b + 1] for x in (q, k, v)), kernel, attention_mask=MASK[b : b + 1])
                for b in range(B)
            ],
            axis=0,
        ),
    ),
}


@pytest.mark.parametrize("name", sampled(PAIRS, 3))
def test_both_are_the_same(name):
    pair = PAIRS[name]
    rng = np.random.default_rng(12)
    arrays = {
        "q": rng.normal(size=(B, T, pair.heads, H)),
        "k": rng.normal(size=(B, T, pair.kv_heads, H)),
        "v": rng.normal(size=(B, T, pair.kv_heads, HV)),
    }
    upstream = rng.normal(size=(B, pair.length, pair.heads, HV))
    # Tensors of its own for each side: one backward pass gives the gradients of both.
    inputs = {f"{name}{side}": tensor(x) for side in "lr" for name, x in arrays.items()}

    def both(ql, kl, vl, qr, kr, vr):
        return (ops.stack([pair.left(ql, kl, vl, "blocked"), pair.right(qr, kr, vr, "plain")]),)

    with block_size(SMALL_BLOCK):
        (output,), gradients = value_and_gradients(both, inputs, tensor(upstream))
    np.testing.assert_allclose(output[0], output[1], **CLOSE)
    for name in arrays:
        np.testing.assert_allclose(gradients[f"{name}l"], gradients[f"{name}r"], **CLOSE)
    assert np.abs(output).max() > 0.1
