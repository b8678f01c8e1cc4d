"""Positions as their papers write them, in float64 and number by number.

Written from the formulas alone. Shape letters as in `reference`. The sizes and inputs are those
of the tests of positions.
"""

import math

import numpy as np

B, T, S, K, G = 2, 13, 17, 1, 3
N = K * G
PER_SAMPLE = np.random.default_rng(1).integers(0, 90, (B, T))
KEYS_PER_SAMPLE = np.random.default_rng(2).integers(0, 90, (B, S))


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def rotate(x, positions, frequencies, layout, factor=1.0):
    """(B, T, N, H) with each pair of features turned by position * frequency.

    `positions` are (T) or (B, T); features beyond the pairs stay.
    """
    B, T, N, _ = x.shape
    positions = np.broadcast_to(positions, (B, T))
    pairs = len(frequencies)
    turned = np.array(x, dtype=np.float64)
    for b, t, n in np.ndindex(B, T, N):
        for i, frequency in enumerate(frequencies):
            first, second = (i, i + pairs) if layout == "half" else (2 * i, 2 * i + 1)
            angle = float(positions[b, t]) * frequency
            number = complex(x[b, t, n, first], x[b, t, n, second])
            number *= factor * complex(math.cos(angle), math.sin(angle))
            turned[b, t, n, first], turned[b, t, n, second] = number.real, number.imag
    return turned


def frequencies(theta, size):
    return [theta ** (-2.0 * i / size) for i in range(size // 2)]


def slopes(heads):
    """Of the ALiBi paper: its sequence for a power of two, and its rule for other numbers."""
    if math.log2(heads).is_integer():
        start = 2.0 ** (-8.0 / heads)
        return [start ** (n + 1) for n in range(heads)]
    below = 2 ** math.floor(math.log2(heads))
    return slopes(below) + slopes(2 * below)[0::2][: heads - below]


def alibi(heads, query_positions, key_positions):
    """(N, T, S)."""
    bias = np.zeros((heads, len(query_positions), len(key_positions)))
    for n, slope in enumerate(slopes(heads)):
        for t, here in enumerate(query_positions):
            for s, there in enumerate(key_positions):
                bias[n, t, s] = -slope * abs(float(here) - float(there))
    return bias


def bucket(distance, buckets, farthest, causal):
    """T5's bucket of one distance, key less query."""
    first = 0
    if not causal:
        buckets //= 2
        first = buckets if distance > 0 else 0
        distance = -abs(distance)
    away = max(-distance, 0)
    exact = buckets // 2
    if away < exact:
        return first + away
    # A hair more: in exact arithmetic powers of two lie on the edge.
    steps = math.log(away / exact) / math.log(farthest / exact) * (buckets - exact) + 1e-9
    return first + min(exact + math.floor(steps), buckets - 1)


def bucket_matrix(query_positions, key_positions, buckets, farthest, causal):
    """(T, S) of buckets."""
    return np.array(
        [
            [
                bucket(math.trunc(float(there) - float(here)), buckets, farthest, causal)
                for there in key_positions
            ]
            for here in query_positions
        ]
    )


def rotate_axes(x, positions, frequencies, axes, layout):
    """(B, T, N, H), pair i turned by the axis `axes[i]` of positions (B, T, axes)."""
    B, T, N, _ = x.shape
    positions = np.broadcast_to(positions, (B, *positions.shape[1:]))
    pairs = len(frequencies)
    turned = np.array(x, dtype=np.float64)
    for b, t, n in np.ndindex(B, T, N):
        for i, (frequency, axis) in enumerate(zip(frequencies, axes, strict=True)):
            first, second = (i, i + pairs) if layout == "half" else (2 * i, 2 * i + 1)
            angle = float(positions[b, t, axis]) * frequency
            number = complex(x[b, t, n, first], x[b, t, n, second])
            number *= complex(math.cos(angle), math.sin(angle))
            turned[b, t, n, first], turned[b, t, n, second] = number.real, number.imag
    return turned


def offset_entries(queries, keys, farthest, class_token=False):
    """(T, S): entry of the offset of each query and key, positions (T, axes) and (S, axes).

    A class token comes first: then the last entries are for its query, its key and for both.
    """
    count = math.prod(2 * most + 1 for most in farthest)
    entries = np.zeros((len(queries), len(keys)), int)
    for t, here in enumerate(queries):
        for s, there in enumerate(keys):
            entry = 0
            for q, k, most in zip(here, there, farthest, strict=True):
                offset = max(-most, min(most, math.trunc(float(q) - float(k))))
                entry = entry * (2 * most + 1) + offset + most
            if class_token and 0 in (t, s):
                entry = count + (2 if t == s else 0 if t == 0 else 1)
            entries[t, s] = entry
    return entries
