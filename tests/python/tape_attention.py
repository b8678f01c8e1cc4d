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


def rotary_angles(
    tape, positions, size, theta=10000.0, scaling=None, sections=None, single=True, longest=None
):
    """Cosines and sines (B, T, 1, P) of the scaling's published formula.

    `positions` are (B|1, T), or (B|1, T, axes) of `sections`; `longest` (B|1) is the length of each
    sequence. `single` says that the angles are numbers of float32, as in all published models.
    """
    frequencies, factor = rotary_frequencies(size, theta, scaling, longest)
    if sections is not None and sections["type"] == "axial":
        parts = [theta ** (-np.arange(pairs) / pairs) for pairs in sections["sizes"]]
        frequencies = np.concatenate(parts)
    places = np.asarray(positions, float)
    several = places.ndim == 3
    places = places[..., axes_of_pairs(**sections)] if several else places[..., None]
    angles = places * frequencies
    if tape.rounding:
        # Twice: the frequency is rounded, and the product.
        digit = 2.0**-23 if single else 2.0**-52
        angles = tape.rounded(tape.rounded(angles, digit), digit).real.astype(float)
    return [factor * f(angles)[:, :, None] for f in (np.cos, np.sin)]


def axes_of_pairs(type, sizes):
    """(P): the axis of the positions by which each pair is rotated.

    "interleaved": pair i goes to axis i mod axes while that axis has pairs left, else to the first.
    """
    if type != "interleaved":
        return [axis for axis, size in enumerate(sizes) for _ in range(size)]
    left, found = list(sizes), []
    for i in range(sum(sizes)):
        axis = i % len(sizes)
        axis = axis if axis == 0 or left[axis] else 0
        left[axis] -= 1
        found.append(axis)
    return found


def rotary_frequencies(size, theta, scaling, longest=None):
    """(P) frequencies or (B|1, 1, P) by length, and the factor of cosine and sine."""
    i = np.arange(size // 2)
    plain = theta ** (-2.0 * i / size)
    if scaling is None:
        return plain, 1.0
    if scaling["type"] == "proportional":
        turning = i < int(scaling["partial_rotary_factor"] * size // 2)
        return np.where(turning, plain / scaling.get("factor", 1.0), 0.0), 1.0
    if scaling["type"] in ("dynamic", "longrope"):
        return frequencies_by_length(size, theta, scaling, longest)
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


def frequencies_by_length(size, theta, scaling, longest):
    """(B|1, 1, P) of sequences of lengths (B|1): dynamic NTK and LongRoPE."""
    i = np.arange(size // 2)
    trained = scaling["original_max_position_embeddings"]
    length = scaling.get("length")
    lengths = np.asarray(longest if length is None else [length], float)[:, None, None]
    if scaling["type"] == "dynamic":
        factor = scaling["factor"]
        growth = factor * np.maximum(lengths, trained) / trained - (factor - 1)
        bases = theta * growth ** (size / max(size - 2, 1))
        return bases ** (-2.0 * i / size), 1.0
    divisors = np.where(
        lengths > trained, scaling["long_factor"], np.array(scaling["short_factor"])
    )
    attention = math.sqrt(1 + math.log(scaling["factor"]) / math.log(trained))
    return theta ** (-2.0 * i / size) / divisors, attention


def offsets(coordinates, farthest, class_token=False):
    """(B|1, T, T): the entry of each pair's offsets along the axes, query less key.

    The last three are those of a class token, which comes first: its query, its key, both.
    """
    entries = 0
    for axis, most in enumerate(farthest):
        of_axis = np.asarray(coordinates, float)[..., axis]
        away = np.trunc(of_axis[:, :, None] - of_axis[:, None, :])
        entries = entries * (2 * most + 1) + np.clip(away, -most, most).astype(int) + most
    if class_token:
        count = math.prod(2 * most + 1 for most in farthest)
        entries[:, 0], entries[:, :, 0], entries[:, 0, 0] = count, count + 1, count + 2
    return entries


def sinusoids(farthest, width):
    """(2 M + 1, width) of the distances M to -M: sine and cosine in turn."""
    angles = np.arange(farthest, -farthest - 1.0, -1)[:, None] / 1e4 ** (
        2 * (np.arange(width) // 2) / width
    )
    return np.where(np.arange(width) % 2 == 0, np.sin(angles), np.cos(angles))


def deberta_rows(away, farthest, buckets=None):
    """Rows of the tables for distances, query less key, by the published formula."""
    if buckets is None:
        return np.clip(away + farthest, 0, 2 * farthest - 1)
    exact = buckets // 4
    far = np.maximum(abs(away), exact)
    # Less a hair: in exact arithmetic powers lie on the edge, where float32 is below it.
    growth = np.log(far / exact) / np.log((farthest - 1) / exact) * (exact - 1)
    log = np.sign(away) * (np.ceil(growth - 1e-6).astype(int) + exact)
    rows = np.where(abs(away) <= exact, away, log)
    return np.clip(rows + buckets // 2, 0, 2 * (buckets // 2) - 1)


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
        coordinates=None,
        causal=False,
        only_earlier=None,
        keep_seed=None,
        rate=0.0,
    ):
        """Nodes of the output and of the weights, and all leaves by name.

        `inputs` holds "query" and, for attention over others, "value" and "key"; masks of padding
        have the inputs' axes but the last, `mask` and `bias` those of the scores, all of them,
        `segments`, `bidirectional` and `positions` are (B', T), `coordinates` (B'|1, T, axes).
        `only_earlier` says whether relative positions are those of earlier keys, by default where
        `causal`.
        """
        only_earlier = causal if only_earlier is None else only_earlier
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
        q, k, v = self.heads(tape, leaves, *(folded[id(x)] for x in (query, key, value)))
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
        kind = None if self.position is None else self.position["kind"]
        if kind == "rotary":
            at = (places, key_places) if coordinates is None else (coordinates, coordinates)
            longest = longest_of(*at)
            q, k = (self.rotated(tape, x, p, longest) for x, p in ((q, at[0]), (k, at[1])))
        elif kind == "grid":
            grid = {name: x for name, x in self.position.items() if name != "kind"}
            entries = offsets(coordinates, grid.pop("max_distance"), **grid)
            biases.append(tape.look_up(leaves["table"], entries))
        elif kind in ("alibi", "relative"):
            biases.append(
                self.position_bias(tape, leaves, N, distances(places, key_places), only_earlier)
            )
        if after:
            q, k = self.normalised(tape, leaves, norm, q, k)
        if "per_dim_scale" in leaves:
            factor = tape.scale(tape.softplus(leaves["per_dim_scale"]), 1 / math.log(2))
            q = tape.multiply(q, factor)
        if self.query_scale is not None:
            q = tape.scale(q, query_factors(places, **self.query_scale)[:, :, None, None])
        if kind == "relative keys":
            away = np.trunc(distances(places, key_places)).astype(int)
            biases.append(self.key_bias(tape, leaves, q, k, away))
            if "content_bias" in leaves:
                q = tape.add(q, leaves["content_bias"])
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

    def heads(self, tape, leaves, query, key, value):
        """Projected queries, keys and values of folded inputs; values are keys without a kernel."""
        inputs = (("query", query), ("key", key), ("value", value))
        inputs = inputs if "value/kernel" in leaves else inputs[:2]
        heads = [self.project(tape, leaves, name, x) for name, x in inputs]
        return heads if len(heads) == 3 else [*heads, heads[1]]

    def rotated(self, tape, x, places, longest):
        names = ("theta", "scaling", "sections")
        options = {n: y for n, y in self.position.items() if n in names}
        size = int(x.value.shape[3] * self.position["fraction"] + 1e-6)
        angles = rotary_angles(tape, places, size, single=self.single, longest=longest, **options)
        return tape.rotate(x, *angles, self.position["layout"])

    def key_bias(self, tape, leaves, query, key, away):
        """(B, N, T, S) of queries and keys at distances `away`, key less query."""
        scale = 1.0 / math.sqrt(query.value.shape[3]) if self.scale is None else self.scale
        farthest, kind = self.position["max_distance"], self.position["type"]
        away = np.clip(away, -farthest, farthest)
        if kind in ("shaw", "huang"):
            table = leaves["key_table"]
            table = tape.reshape(table, (table.value.shape[0], table.value.shape[2]))
            products = tape.einsum("btnh,eh->bnte", tape.scale(query, scale), table)
            of_queries = tape.pick(products, away + farthest)
            if kind == "shaw":
                return of_queries
            products = tape.einsum("bsnh,eh->bnse", tape.scale(key, scale), table)
            of_keys = tape.pick(products, np.swapaxes(away, 1, 2) + farthest)
            return tape.add(of_queries, tape.transpose(of_keys, (0, 1, 3, 2)))
        if kind == "transformer_xl":
            kernel = leaves["position_kernel"]
            waves = tape.leaf(tape.rounded(sinusoids(farthest, kernel.value.shape[0])))
            table = tape.einsum("ew,wnh->enh", waves, kernel)
            query = tape.scale(tape.add(query, leaves["position_bias"]), scale)
            return tape.pick(tape.einsum("btnh,enh->bnte", query, table), away + farthest)
        rows = deberta_rows(-away, farthest, self.position.get("num_buckets"))
        found = []
        for x, table, entries in (
            (query, leaves["key_table"], rows),
            (key, leaves["query_table"], np.swapaxes(rows, 1, 2)),
        ):
            products = tape.einsum("btnh,enh->bnte", tape.scale(x, scale), table)
            found.append(tape.pick(products, entries))
        return tape.add(found[0], tape.transpose(found[1], (0, 1, 3, 2)))

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


class LatentLayer(Layer):
    """Multi-head latent attention; its position rotates the last `rotary_dim` features."""

    def __init__(self, *args, rotary_dim, **options):
        super().__init__(*args, **options)
        self.rotary_dim = rotary_dim

    def heads(self, tape, leaves, query, key, value):
        of_queries = query
        if "query_latent/kernel" in leaves:
            of_queries = self.latent(tape, leaves, "query_latent", query)
            of_queries = tape.multiply(tape.norm(of_queries), leaves["query_latent_norm/scale"])
        q = self.project(tape, leaves, "query", of_queries)
        made = self.latent(tape, leaves, "latent", query)
        rank = made.value.shape[-1] - self.rotary_dim
        latent = tape.norm(tape.part(made, 0, rank))
        latent = tape.multiply(latent, leaves["latent_norm/scale"])
        shared = tape.part(made, rank, rank + self.rotary_dim)
        k, v = (self.project(tape, leaves, name, latent) for name in ("key", "value"))
        B, S, N, _ = k.value.shape
        shared = tape.reshape(shared, (B, S, 1, self.rotary_dim))
        return q, tape.join(k, tape.spread(shared, (B, S, N, self.rotary_dim))), v

    def latent(self, tape, leaves, name, x):
        made = tape.einsum("btd,dc->btc", x, leaves[f"{name}/kernel"])
        bias = leaves.get(f"{name}/bias")
        return made if bias is None else tape.add_bias(made, bias)

    def rotated(self, tape, x, places, longest):
        size = x.value.shape[-1]
        plain = tape.part(x, 0, size - self.rotary_dim)
        turned = tape.part(x, size - self.rotary_dim, size)
        return tape.join(plain, super().rotated(tape, turned, places, longest))


def longest_of(*positions):
    """(B|1): the largest position of each sequence plus one, at least 1."""
    found = [np.asarray(x).max(axis=tuple(range(1, np.ndim(x))), initial=0) + 1 for x in positions]
    return np.maximum(*np.broadcast_arrays(*found))


def sum_like(x, shape):
    axes = tuple(i for i, size in enumerate(shape) if size == 1 and x.shape[i] != 1)
    return x.sum(axis=axes, keepdims=True)


__all__ = ["LatentLayer", "Layer", "Tape", "attention", "kept_weights", "visible"]
