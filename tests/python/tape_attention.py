"""The function and the layers in float64 NumPy with gradients, whole arrays at a time.

The fuzzers' yardstick; `test_tape.py` holds it against the loops of `reference`. It shares no
code with the package. Shape letters as in `reference`; D features, P pairs that turn.
"""

import math

import numpy as np

import position_reference
import reference
from tape import Tape


def attention(
    tape, query, key, value, seen, *, scale=None, biases=(), cap=None, sink=None, keep=None, rate=0
):
    """The output (B, T, N, Hv) and the weights (B, N, T, S) of nodes, `biases` among them."""
    B, T, N, H = query.value.shape
    S, K, Hv = value.value.shape[1:]
    scale = 1.0 / math.sqrt(H) if scale is None else scale
    grouped = tape.reshape(tape.scale(query, scale), (B, T, K, N // K, H))
    logits = tape.einsum("btkgh,bskh->bkgts", grouped, key)
    logits = tape.reshape(logits, (B, N, T, S))
    if cap is not None:
        logits = tape.cap(logits, cap)
    for bias in biases:
        hidden = np.isneginf(bias.value.real)
        seen = seen & ~np.broadcast_to(hidden, seen.shape)
        bias.value = np.where(hidden, 0.0, bias.value)
        logits = tape.add(logits, bias)
    weights = tape.softmax(logits, seen, sink)
    kept = weights if keep is None else tape.scale(weights, keep / (1.0 - rate))
    grouped = tape.reshape(kept, (B, K, N // K, T, S))
    output = weights.output = tape.einsum("bkgts,bskv->btkgv", grouped, value)
    return tape.reshape(output, (B, T, N, Hv)), weights


def visible(
    shape,
    *,
    mask=None,
    causal=False,
    window=None,
    rule=None,
    query_positions=None,
    key_positions=None,
    query_segments=None,
    key_segments=None,
    bidirectional=None,
    query_mask=None,
    key_mask=None,
):
    """`reference.visible` of whole arrays."""
    T, S = shape[2:]
    here = np.arange(T)[None] if query_positions is None else np.asarray(query_positions)
    there = np.arange(S)[None] if key_positions is None else np.asarray(key_positions)
    distance = (there[:, None, :] - here[:, :, None])[:, None]
    seen = np.ones(shape, dtype=bool)
    if causal:
        seen &= distance <= 0
    if window is not None:
        seen &= abs(distance) < window
    if rule is not None:
        seen &= rule(here[:, None, :, None], there[:, None, None, :])
    if bidirectional is not None:
        spans = np.asarray(bidirectional)
        same = (spans[:, :, None] == spans[:, None, :]) & (spans > 0)[:, None, :]
        seen |= same[:, None]
    if mask is not None:
        seen &= reference.spread(mask, shape).astype(bool)
    if query_segments is not None:
        q, k = np.asarray(query_segments)[:, :, None], np.asarray(key_segments)[:, None, :]
        seen &= ((q == k) & (k != 0))[:, None]
    if query_mask is not None:
        seen &= np.asarray(query_mask, bool)[:, None, :, None]
    if key_mask is not None:
        seen &= np.asarray(key_mask, bool)[:, None, None, :]
    return seen


def kept_weights(seed, shape, rate):
    """`reference.kept_weights` of whole arrays."""
    first, second = (np.uint32(int(word) % 2**32) for word in seed)
    index = [np.arange(size, dtype=np.uint32) for size in shape]
    with np.errstate(over="ignore"):
        sample = index[0][:, None] * np.uint32(65537) + index[1][None]
        stream = murmur(first + murmur(second + murmur(sample)))[:, :, None]
        rows = murmur(stream + murmur(index[2]))
        state = murmur(rows[..., None] ^ murmur(index[3] + first))
    return state.view(np.int32) >= math.floor(rate * 2**32) - 2**31


def murmur(x):
    x = x ^ (x >> np.uint32(16))
    x = x * np.uint32(0x85EBCA6B)
    x = x ^ (x >> np.uint32(13))
    x = x * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))


def rotary_angles(tape, positions, size, theta=10000.0, scaling=None, single=True):
    """Cosines and sines (B, T, 1, P) of the scaling's published formula.

    `single` says that the angles are numbers of float32, as in all published models.
    """
    frequencies, factor = rotary_frequencies(size, theta, scaling)
    angles = np.asarray(positions, float)[..., None] * frequencies
    if tape.rounding and single:
        # Twice: the frequency is rounded, and the product.
        angles = tape.rounded(tape.rounded(angles, 2.0**-23), 2.0**-23).real.astype(float)
    return [factor * f(angles)[:, :, None] for f in (np.cos, np.sin)]


def rotary_frequencies(size, theta, scaling):
    """(P) frequencies, and the factor of cosine and sine."""
    i = np.arange(size // 2)
    plain = theta ** (-2.0 * i / size)
    if scaling is None:
        return plain, 1.0
    factor = scaling["factor"]
    if scaling["type"] == "linear":
        return plain / factor, 1.0
    if scaling["type"] == "ntk":
        power = size / (size - 2) if size > 2 else 1.0
        return (theta * factor**power) ** (-2.0 * i / size), 1.0
    trained = scaling["original_max_position_embeddings"]
    if scaling["type"] == "llama3":
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        waves = 2 * np.pi / plain
        smooth = (trained / waves - low) / (high - low)
        blend = (1 - smooth) * plain / factor + smooth * plain
        result = np.where(waves > trained / low, plain / factor, blend)
        return np.where(waves < trained / high, plain, result), 1.0
    # YaRN, sections 3.2 to 3.4: which pairs turn often enough within the trained length.
    bounds = [
        size * math.log(trained / (2 * math.pi * turns)) / (2 * math.log(theta))
        for turns in (scaling.get("beta_fast", 32.0), scaling.get("beta_slow", 1.0))
    ]
    low, high = max(math.floor(bounds[0]), 0), min(math.ceil(bounds[1]), size - 1)
    ramp = np.clip((i - low) / (high - low if high > low else 0.001), 0.0, 1.0)
    return plain * (1 - ramp) + plain / factor * ramp, 0.1 * math.log(factor) + 1.0


def distances(query_positions, key_positions):
    """Key less query: (B|1, T, S)."""
    return np.asarray(key_positions)[:, None, :] - np.asarray(query_positions)[:, :, None]


def alibi_bias(heads, distance):
    slopes = np.array(position_reference.slopes(heads))
    return -slopes[None, :, None, None] * abs(distance)[:, None]


def relative_buckets(distance, buckets, farthest, causal):
    unique, inverse = np.unique(distance, return_inverse=True)
    found = [position_reference.bucket(int(d), buckets, farthest, causal) for d in unique]
    return np.array(found, dtype=int)[inverse].reshape(distance.shape)


def query_factors(places, type, attn_scale=0.1, floor_scale=8192, offset=1, length=None):
    """The factors of queries at places (B|1, T), by the published formulas."""
    at = np.maximum(np.asarray(places, float), 0.0)
    if type == "log":
        return np.maximum(np.log(at + 1) / np.log(length), 1.0)
    return 1 + attn_scale * np.log(1 + np.floor((at + offset) / floor_scale))


class Layer:
    """An attention layer of named float64 weights.

    Args:
        weights: Arrays by path such as "query/kernel".
        axes: The attention axes, counted from 0.
        position: None, or a dictionary with a `kind` and that kind's options.
        norm: None, or a dictionary with the options of `Tape.norm`, and `after_position` and
            `offset`. The weights say whether there are scales and biases.
        scale: None, or the factor of the logits.
        value_norm: Whether values are divided by their root mean square.
        query_scale: None, or a dictionary with a `type` and its options.
    """

    def __init__(
        self,
        weights,
        axes,
        *,
        window=None,
        cap=None,
        position=None,
        single=True,
        norm=None,
        scale=None,
        value_norm=False,
        query_scale=None,
        rule=None,
    ):
        self.weights, self.axes, self.rule = weights, axes, rule
        self.window, self.cap, self.position, self.single = window, cap, position, single
        self.norm, self.scale = norm, scale
        self.value_norm, self.query_scale = value_norm, query_scale
        if norm is None and "query_norm/scale" in weights:
            self.norm = {}

    def __call__(
        self,
        tape,
        inputs,
        *,
        mask=None,
        bias=None,
        query_mask=None,
        key_mask=None,
        segments=None,
        bidirectional=None,
        positions=None,
        causal=False,
        keep_seed=None,
        rate=0.0,
    ):
        """Nodes of the output and of the weights, and all leaves by name.

        `inputs` holds "query" and, for attention over others, "value" and "key"; masks of padding
        have the inputs' axes but the last, `mask` and `bias` those of the scores, all of them,
        `segments`, `bidirectional` and `positions` are (B', T).
        """
        leaves = {name: tape.leaf(x) for name, x in inputs.items()}
        leaves |= {name: tape.leaf(x) for name, x in self.weights.items()}
        query = leaves["query"]
        value = leaves.get("value", query)
        key = leaves.get("key", value)
        own = value is query and key is query
        rank = query.value.ndim
        batch = [axis for axis in range(rank - 1) if axis not in self.axes]
        self.order = batch + list(self.axes)
        folded = {id(x): self.fold(tape, x) for x in (query, value, key)}
        q, k, v = (
            self.project(tape, leaves, name, folded[id(x)])
            for name, x in (("query", query), ("key", key), ("value", value))
        )
        norm = dict(self.norm or {})
        after = norm.pop("after_position", False)
        if self.norm is not None and not after:
            q, k = self.normalised(tape, leaves, norm, q, k)
        B, T, N, _ = q.value.shape
        S = k.value.shape[1]
        places = np.arange(T)[None] if positions is None else np.asarray(positions)
        key_places = places if own else np.arange(S)[None]
        biases = []
        if bias is not None:
            leaves["attention_bias"] = tape.leaf(bias)
            biases.append(self.fold_bias(tape, leaves["attention_bias"], len(batch), (B, T, S)))
        if self.position is not None and self.position["kind"] == "rotary":
            q, k = (self.rotated(tape, x, p) for x, p in ((q, places), (k, key_places)))
        elif self.position is not None:
            biases.append(
                self.position_bias(tape, leaves, N, distances(places, key_places), causal)
            )
        if after:
            q, k = self.normalised(tape, leaves, norm, q, k)
        if "per_dim_scale" in leaves:
            factor = tape.scale(tape.softplus(leaves["per_dim_scale"]), 1 / math.log(2))
            q = tape.multiply(q, factor)
        if self.query_scale is not None:
            q = tape.scale(q, query_factors(places, **self.query_scale)[:, :, None, None])
        if self.value_norm:
            v = tape.norm(v)
        seen = visible(
            (B, N, T, S),
            mask=None if mask is None else self.fold_mask(mask, len(batch), (B, N, T, S)),
            causal=causal,
            window=self.window,
            rule=self.rule,
            query_positions=places,
            key_positions=key_places,
            query_segments=segments,
            key_segments=segments,
            bidirectional=bidirectional,
            query_mask=None if query_mask is None else self.fold_array(query_mask, ()),
            key_mask=None if key_mask is None else self.fold_array(key_mask, ()),
        )
        keep = None if not rate else kept_weights(keep_seed, (B, N, T, S), rate)
        output, weights = attention(
            tape,
            q,
            k,
            v,
            seen,
            scale=self.scale,
            biases=biases,
            cap=self.cap,
            sink=leaves.get("sink"),
            keep=keep,
            rate=rate,
        )
        if "gate/kernel" in leaves:
            gate = tape.sigmoid(self.project(tape, leaves, "gate", folded[id(query)]))
            output = tape.multiply(output, gate)
        kernel = leaves["attention_output/kernel"]
        letters = "xyz"[: kernel.value.ndim - 2]
        output = tape.einsum(f"btnv,nv{letters}->bt{letters}", output, kernel)
        if "attention_output/bias" in leaves:
            output = tape.add_bias(output, leaves["attention_output/bias"])
        output = self.unfold(tape, output, query.value.shape)
        lengths = [[x.value.shape[axis] for axis in self.axes] for x in (query, key)]
        batches = [query.value.shape[axis] for axis in batch]
        weights = tape.reshape(weights, (*batches, N, *lengths[0], *lengths[1]))
        return output, weights, leaves, seen

    def normalised(self, tape, leaves, norm, query, key):
        """Queries and keys, each with its learned numbers."""
        offset = norm.get("offset", 0.0)
        options = {name: x for name, x in norm.items() if name != "offset"}
        heads = []
        for name, x in (("query_norm", query), ("key_norm", key)):
            x = tape.norm(x, **options)
            if f"{name}/scale" in leaves:
                scale = leaves[f"{name}/scale"]
                x = tape.multiply(x, tape.shifted(scale, offset) if offset else scale)
            if f"{name}/bias" in leaves:
                x = tape.add(x, leaves[f"{name}/bias"])
            heads.append(x)
        return heads

    def rotated(self, tape, x, places):
        options = {n: y for n, y in self.position.items() if n in ("theta", "scaling")}
        size = int(x.value.shape[3] * self.position["fraction"] + 1e-6)
        angles = rotary_angles(tape, places, size, single=self.single, **options)
        return tape.rotate(x, *angles, self.position["layout"])

    def position_bias(self, tape, leaves, heads, distance, causal):
        if self.position["kind"] == "alibi":
            return tape.leaf(tape.rounded(alibi_bias(heads, distance)))
        sizes = (self.position["num_buckets"], self.position["max_distance"])
        return tape.look_up(leaves["table"], relative_buckets(distance, *sizes, causal))

    def project(self, tape, leaves, name, x):
        heads = tape.einsum("btd,dnh->btnh", x, leaves[f"{name}/kernel"])
        bias = leaves.get(f"{name}/bias")
        return heads if bias is None else tape.add_bias(heads, bias)

    def fold(self, tape, x):
        moved = tape.transpose(x, [*self.order, len(self.order)])
        sizes = self.folded_sizes(moved.value.shape)
        return tape.reshape(moved, (*sizes, x.value.shape[-1]))

    def fold_array(self, x, tail):
        moved = np.asarray(x).transpose(self.order)
        return moved.reshape(self.folded_sizes(moved.shape))

    def folded_sizes(self, shape):
        split = len(self.order) - len(self.axes)
        return math.prod(shape[:split]), math.prod(shape[split : len(self.order)])

    def unfold(self, tape, x, shape):
        sizes = [shape[axis] for axis in self.order]
        features = x.value.shape[2:]
        x = tape.reshape(x, (*sizes, *features))
        back = list(np.argsort(self.order))
        return tape.transpose(x, back + list(range(len(back), len(back) + len(features))))

    def fold_mask(self, mask, batches, shape):
        full = self.full_scores(np.asarray(mask), batches)
        return self.spread_scores(full, batches, shape)

    def fold_bias(self, tape, bias, batches, sizes):
        """The bias of the scores' axes as (B', N|1, T, S)."""
        B, T, S = sizes
        raw = bias.value
        full = self.full_scores(raw, batches)
        wide = np.broadcast_to(full, self.scores_shape(full, batches))

        def share(g):
            # Summed over what was broadcast, by the caller for the leading axes.
            return sum_like(g.reshape(wide.shape), full.shape).reshape(raw.shape)

        node = type(bias)(wide.reshape(B, full.shape[batches], T, S))
        tape.steps.append((node, [(bias, share)]))
        return node

    def full_scores(self, x, batches):
        """Missing axes put before those of the queries."""
        missing = batches + 1 + 2 * len(self.axes) - x.ndim
        lead = x.ndim - 2 * len(self.axes)
        return x.reshape(*x.shape[:lead], *(1,) * missing, *x.shape[lead:])

    def scores_shape(self, full, batches):
        return (*self.batch_sizes, full.shape[batches], *self.query_sizes, *self.key_sizes)

    def spread_scores(self, full, batches, shape):
        B, _, T, S = shape
        wide = np.broadcast_to(full, self.scores_shape(full, batches))
        return np.broadcast_to(wide.reshape(B, full.shape[batches], T, S), shape)

    def with_sizes(self, query, key):
        """Tells the sizes of the axes of query and key."""
        batch = [axis for axis in range(query.ndim - 1) if axis not in self.axes]
        self.batch_sizes = [query.shape[axis] for axis in batch]
        self.query_sizes = [query.shape[axis] for axis in self.axes]
        self.key_sizes = [key.shape[axis] for axis in self.axes]
        return self


def sum_like(x, shape):
    axes = tuple(i for i, size in enumerate(shape) if size == 1 and x.shape[i] != 1)
    return x.sum(axis=axes, keepdims=True)


__all__ = ["Layer", "Tape", "attention", "kept_weights", "visible"]
