"""A whole attention layer in float64 NumPy: project, attend over any axes, gate, project back.

The attention itself is `reference.attention`. Shape letters as there; D features.
"""

import math

import numpy as np

import position_reference
import reference


def attention_layer(
    weights,
    query,
    value=None,
    key=None,
    *,
    axes=None,
    mask=None,
    bias=None,
    query_mask=None,
    key_mask=None,
    segments=None,
    positions=None,
    causal=False,
    window=None,
    cap=None,
    norm=None,
    rotary=None,
    scale=None,
    value_norm=False,
    query_scale=None,
):
    """The output and the weights (batch axes, N, query axes, key axes).

    `weights` holds arrays by path, such as "query/kernel". Masks of padding have the axes
    of the inputs but the last, `mask` and `bias` those of the scores, all of them. `norm` has the
    options of `normalised`, and "after_position"; `rotary` is a base of frequencies;
    `query_scale` gives the factor of a position.
    """
    value = query if value is None else value
    key = value if key is None else key
    axes = tuple(range(1, query.ndim - 1)) if axes is None else axes
    batch = [axis for axis in range(query.ndim - 1) if axis not in axes]
    values = "value" if "value/kernel" in weights else "key"
    q, k, v = (
        fold(project(weights, name, x), axes)
        for name, x in (("query", query), ("key", key), (values, value))
    )
    B, T, N, S = *q.shape[:3], k.shape[1]
    places = np.broadcast_to(np.arange(T) if positions is None else positions, (B, T))
    key_places = places if key is query else np.broadcast_to(np.arange(S), (B, S))
    after = (norm or {}).get("after_position", False)
    if norm is not None and not after:
        q, k = normalised_pair(weights, q, k, norm)
    if rotary is not None:
        pairs = position_reference.frequencies(rotary, q.shape[3])
        q = position_reference.rotate(q, places, pairs, "half")
        k = position_reference.rotate(k, key_places, pairs, "half")
    if after:
        q, k = normalised_pair(weights, q, k, norm)
    if "per_dim_scale" in weights:
        q = q * np.log1p(np.exp(weights["per_dim_scale"].astype(float))) / math.log(2)
    if value_norm:
        v = normalised(v)
    for b, t in np.ndindex(B, T) if query_scale is not None else ():
        q[b, t] *= query_scale(float(places[b, t]))
    seen = reference.visible(
        B,
        N,
        T,
        S,
        mask=None if mask is None else fold_scores(mask, len(batch), len(axes)),
        causal=causal,
        window=window,
        query_mask=None if query_mask is None else fold(query_mask, axes),
        key_mask=None if key_mask is None else fold(key_mask, axes),
        query_segments=segments,
        key_segments=segments,
        query_positions=places,
        key_positions=key_places,
    )
    heads, scores = reference.attention(
        q,
        k,
        v,
        seen=seen,
        scale=scale,
        cap=cap,
        bias=None if bias is None else fold_scores(bias, len(batch), len(axes)),
        sink=weights.get("sink"),
    )
    heads = unfold(heads, axes, query.shape)
    if "gate/kernel" in weights:
        heads = heads / (1.0 + np.exp(-project(weights, "gate", query)))
    output = np.tensordot(heads, weights["attention_output/kernel"].astype(float), 2)
    output = output + weights.get("attention_output/bias", 0.0)
    lengths = [[x.shape[axis] for axis in axes] for x in (query, key)]
    return output, scores.reshape(*(query.shape[a] for a in batch), N, *lengths[0], *lengths[1])


def project(weights, name, x):
    """(..., D) to (..., heads, size)."""
    heads = np.tensordot(np.asarray(x, dtype=float), weights[f"{name}/kernel"].astype(float), 1)
    return heads + weights.get(f"{name}/bias", 0.0)


def normalised_pair(weights, query, key, norm):
    """Queries and keys, each with its learned numbers."""
    options = {name: value for name, value in norm.items() if name != "after_position"}
    return [
        normalised(x, weights.get(f"{name}/scale"), weights.get(f"{name}/bias"), **options)
        for name, x in (("query_norm", query), ("key_norm", key))
    ]


def normalised(x, scale=None, bias=None, *, type="rms", over="head", epsilon=1e-6, offset=0.0):
    """(B, T, heads, size), head by head or all heads of a token as one."""
    B, T, heads, _ = x.shape
    result = np.array(x, dtype=np.float64)
    groups = [list(range(heads))] if over == "width" else [[n] for n in range(heads)]
    for b in range(B):
        for t in range(T):
            for group in groups:
                numbers = result[b, t, group]
                if type == "layer":
                    numbers = numbers - numbers.mean()
                total = (numbers**2).sum() if type == "l2" else (numbers**2).mean()
                result[b, t, group] = numbers / math.sqrt(total + epsilon)
    result = result if scale is None else result * (scale.astype(float) + offset)
    return result if bias is None else result + bias.astype(float)


def fold(x, axes):
    """(B, ..., anything) to (B', T, anything): the attention axes become one."""
    # Projections end in heads and sizes, masks of padding do not.
    inner = x.ndim - 2 if x.dtype.kind == "f" else x.ndim
    kept = [axis for axis in range(inner) if axis not in axes]
    moved = np.transpose(x, kept + list(axes) + list(range(inner, x.ndim)))
    sizes = [math.prod(x.shape[axis] for axis in some) for some in (kept, axes)]
    return moved.reshape(*sizes, *x.shape[inner:])


def unfold(heads, axes, shape):
    """(B', T, N, Hv) back to (B, ..., N, Hv), the inverse of `fold`."""
    inner = len(shape) - 1
    kept = [axis for axis in range(inner) if axis not in axes]
    order = kept + list(axes)
    moved = heads.reshape(*(shape[axis] for axis in order), *heads.shape[2:])
    return np.transpose(moved, [*np.argsort(order), inner, inner + 1])


def fold_scores(x, batches, attended):
    """(batch axes, N, query axes, key axes) to (B', N, T, S)."""
    parts = np.split(np.array(x.shape), [batches, batches + 1, batches + 1 + attended])
    return x.reshape([int(np.prod(part)) for part in parts])
