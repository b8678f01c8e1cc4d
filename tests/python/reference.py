"""Attention as its definition says it, in float64 NumPy: loops over samples, heads and queries.

A query's keys are one vector: with a loop over them the reference took longer than the kernels.

Written from the formulas alone; it shares no code, layout or trick with the package.
Shape letters: B batch, T query length, S key/value length, N query heads, K
key/value heads, H head size, Hv value head size.
"""

import math

import numpy as np


def sees(
    t,
    s,
    *,
    causal=False,
    window=None,
    query_positions=None,
    key_positions=None,
    query_segments=None,
    key_segments=None,
    query_bidirectional=None,
    key_bidirectional=None,
    query_mask=None,
    key_mask=None,
):
    """Whether query t of one sample sees its key s. Every array is that sample's, or None."""
    here = t if query_positions is None else float(query_positions[t])
    there = s if key_positions is None else float(key_positions[s])
    within = query_bidirectional is not None and query_bidirectional[t] > 0
    within = within and query_bidirectional[t] == key_bidirectional[s]
    if causal and there > here and not within:
        return False
    if window is not None and abs(there - here) >= window and not within:
        return False
    if query_segments is not None and (
        key_segments[s] == 0 or query_segments[t] != key_segments[s]
    ):
        return False
    if query_mask is not None and not query_mask[t]:
        return False
    return not (key_mask is not None and not key_mask[s])


def visible(B, N, T, S, *, mask=None, causal=False, window=None, **per_sample):
    """All of it as booleans (B, N, T, S). `per_sample` holds arrays (B, T), (B, S) or None."""
    explicit = None if mask is None else spread(mask, (B, N, T, S))
    seen = np.zeros((B, N, T, S), dtype=bool)
    for b in range(B):
        sample = {name: None if x is None else x[b] for name, x in per_sample.items()}
        for t in range(T):
            for s in range(S):
                if sees(t, s, causal=causal, window=window, **sample):
                    seen[b, :, t, s] = True if explicit is None else explicit[b, :, t, s]
    return seen


def spread(x, shape):
    """(T, S), (B, T, S), (B, 1, T, S) or (B, N, T, S) to (B, N, T, S)."""
    x = np.asarray(x)
    if x.ndim == 3:
        x = x[:, np.newaxis]
    return np.broadcast_to(x, shape)


def attention(
    query,
    key,
    value,
    *,
    scale=None,
    seen=None,
    bias=None,
    cap=None,
    sink=None,
    keep=None,
    rate=0.0,
):
    """The output (B, T, N, Hv) and the weights (B, N, T, S) before dropout.

    `seen` holds booleans (B, N, T, S), `bias` numbers that spread to them, `sink` (N)
    logits, `keep` booleans (B, N, T, S): the weights that dropout leaves.
    """
    query, key, value = (np.asarray(x, dtype=np.float64) for x in (query, key, value))
    B, T, N, H = query.shape
    _, S, K, Hv = value.shape
    scale = 1.0 / math.sqrt(H) if scale is None else scale
    bias = None if bias is None else spread(np.asarray(bias, np.float64), (B, N, T, S))
    output = np.zeros((B, T, N, Hv))
    weights = np.zeros((B, N, T, S))
    for b in range(B):
        for n in range(N):
            shared = n // (N // K)
            for t in range(T):
                logits = scale * (key[b, :, shared] @ query[b, t, n])  # (S)
                if cap is not None:
                    logits = cap * np.tanh(logits / cap)
                if bias is not None:
                    logits = logits + bias[b, n, t]
                if seen is not None:
                    logits = np.where(seen[b, n, t], logits, -math.inf)
                row = softmax_row(logits, None if sink is None else float(sink[n]))
                weights[b, n, t] = row
                kept = np.ones(S) if keep is None else keep[b, n, t] / (1.0 - rate)
                output[b, t, n] = (row * kept) @ value[b, :, shared]
    return output, weights


def attention_gradients(
    query,
    key,
    value,
    upstream,
    *,
    scale=None,
    seen=None,
    bias=None,
    cap=None,
    sink=None,
    keep=None,
    rate=0.0,
):
    """Gradients of sum(output * upstream) by query, key, value, bias (B, N, T, S) and sink.

    The chain rule row by row; a test holds it against finite differences of `attention`.
    """
    query, key, value = (np.asarray(x, dtype=np.float64) for x in (query, key, value))
    B, T, N, H = query.shape
    _, S, K, _ = value.shape
    scale = 1.0 / math.sqrt(H) if scale is None else scale
    options = {"scale": scale, "seen": seen, "bias": bias, "cap": cap, "sink": sink}
    _, weights = attention(query, key, value, **options)
    found = {
        "query": np.zeros_like(query),
        "key": np.zeros_like(key),
        "value": np.zeros_like(value),
        "bias": np.zeros((B, N, T, S)),
        "sink": np.zeros(N),
    }
    for b in range(B):
        for n in range(N):
            shared = n // (N // K)
            for t in range(T):
                row = weights[b, n, t]
                u = np.asarray(upstream[b, t, n], dtype=np.float64)
                kept = np.ones(S) if keep is None else keep[b, n, t] / (1.0 - rate)
                by_weight = kept * (value[b, :, shared] @ u)
                mean = float(row @ by_weight)
                by_logit = row * (by_weight - mean)
                found["bias"][b, n, t] = by_logit
                if sink is not None:
                    of_sink = 1.0 - row.sum() if row.any() else 0.0
                    found["sink"][n] -= of_sink * mean
                if cap is not None:
                    raw = scale * (key[b, :, shared] @ query[b, t, n])
                    by_logit = by_logit / np.cosh(raw / cap) ** 2
                found["query"][b, t, n] = scale * (by_logit @ key[b, :, shared])
                found["key"][b, :, shared] += scale * np.outer(by_logit, query[b, t, n])
                found["value"][b, :, shared] += np.outer(row * kept, u)
    return found


def softmax_row(logits, sink=None):
    """exp(x) over the sum of all exp, one row; zeros where nothing is visible."""
    members = logits > -math.inf
    if not members.any():
        return np.zeros_like(logits)
    top = max(logits[members].max(), -math.inf if sink is None else sink)
    powers = np.where(members, np.exp(logits - top), 0.0)
    return powers / (powers.sum() + (0.0 if sink is None else math.exp(sink - top)))


def kept_weights(seed, shape, rate):
    """The dropout pattern (B, N, T, S) of two 31-bit seed words, in plain integers.

    Murmur3's finaliser as its author published it, chained over the indices.
    """
    B, N, T, S = shape
    limit = math.floor(rate * 2**32)
    keep = np.zeros(shape, dtype=bool)
    first, second = (int(word) for word in seed)
    columns = [murmur((s + first) % 2**32) for s in range(S)]
    rows = [murmur(t) for t in range(T)]
    for b in range(B):
        for n in range(N):
            stream = murmur(first + murmur(second + murmur(b * 65537 + n)))
            for t in range(T):
                row = murmur(stream + rows[t])
                for s in range(S):
                    # Signed comparison: the top bit counts as minus.
                    signed = murmur(row ^ columns[s])
                    signed -= 2**32 if signed >= 2**31 else 0
                    keep[b, n, t, s] = signed >= limit - 2**31
    return keep


def murmur(x):
    x %= 2**32
    x ^= x >> 16
    x = x * 0x85EBCA6B % 2**32
    x ^= x >> 13
    x = x * 0xC2B2AE35 % 2**32
    return x ^ (x >> 16)


def finite_difference(function, x, step=1e-5):
    """The gradient of a scalar function of one float64 array, by central differences."""
    x = np.array(x, dtype=np.float64)
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        saved = x[index]
        x[index] = saved + step
        above = function(x)
        x[index] = saved - step
        below = function(x)
        x[index] = saved
        gradient[index] = (above - below) / (2 * step)
    return gradient
