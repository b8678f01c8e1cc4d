"""Multi-head latent attention in float64 NumPy, head by head from the paper's formulas.

Shape letters: B batch, T length, D features, N heads, H features without position, R rotated
ones, C rank of the latent, Hv value head size.
"""

import numpy as np

import position_reference
import reference


def latent_attention(
    weights,
    x,
    *,
    rotated,
    theta=10000.0,
    layout="interleaved",
    factor=1.0,
    scale=None,
    mask=None,
    bias=None,
    cap=None,
    positions=None,
    key_mask=None,
    segments=None,
    causal=False,
    window=None,
):
    """The output (B, T, D) and the weights (B, N, T, T); `weights` are arrays by path."""
    weights = {name: np.asarray(value, dtype=float) for name, value in weights.items()}
    B, T, _ = x.shape
    of_queries = x
    if "query_latent/kernel" in weights:
        made = x @ weights["query_latent/kernel"] + weights.get("query_latent/bias", 0.0)
        of_queries = normalised(made) * weights["query_latent_norm/scale"]
    made = x @ weights["latent/kernel"] + weights.get("latent/bias", 0.0)
    latent = normalised(made[..., :-rotated]) * weights["latent_norm/scale"]
    places = np.broadcast_to(np.arange(T) if positions is None else positions, (B, T))
    frequencies = position_reference.frequencies(theta, rotated)

    def turned(heads):
        return position_reference.rotate(heads, places, frequencies, layout, factor)

    shared = turned(made[:, :, None, -rotated:])[:, :, 0]  # (B, T, R)
    queries, keys, values = [], [], []
    for n in range(weights["query/kernel"].shape[1]):
        query = of_queries @ weights["query/kernel"][:, n]  # (B, T, H + R)
        turned_query = turned(query[:, :, None, -rotated:])[:, :, 0]  # (B, T, R)
        queries.append(np.concatenate([query[..., :-rotated], turned_query], axis=-1))
        keys.append(np.concatenate([latent @ weights["key/kernel"][:, n], shared], axis=-1))
        values.append(latent @ weights["value/kernel"][:, n])
    query, key, value = (np.stack(heads, axis=2) for heads in (queries, keys, values))
    seen = reference.visible(
        B,
        query.shape[2],
        T,
        T,
        mask=mask,
        causal=causal,
        window=window,
        query_positions=places,
        key_positions=places,
        key_mask=key_mask,
        query_mask=key_mask,
        query_segments=segments,
        key_segments=segments,
    )
    heads, scores = reference.attention(
        query, key, value, seen=seen, scale=scale, cap=cap, bias=bias, sink=weights.get("sink")
    )
    if "gate/kernel" in weights:
        gate = np.einsum("btd,dnv->btnv", x, weights["gate/kernel"]) + weights.get("gate/bias", 0)
        heads = heads / (1.0 + np.exp(-gate))
    output = np.einsum("btnv,nvd->btd", heads, weights["attention_output/kernel"])
    return output + weights.get("attention_output/bias", 0.0), scores


def normalised(x):
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-6)
