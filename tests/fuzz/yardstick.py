"""What the float64 reference says of a case, and how far rounding may take a result from it.

A result may be three times as far from the reference as the plain formula in the same precision
is, plus four roundings of its largest number: twice, and half as much again for the spread of the
sample. The formula's error is sampled: each operation's result gets a random relative error of one
rounding, in arithmetic of float32 (float64 for itself). Second derivatives may be eight times as
far: backends differentiate a backward pass in reverse, which takes sums of more terms than the
sampled formula has.
"""

import keras
import numpy as np
from draws import EPSILON, SMALLEST, bias_dtype, compute_dtype, resolved_axes

import tape_attention
from tape import Tape

SAMPLES = (2, 16, 64)
# What a latent attention without a `position` has.
LATENT_POSITION = {"kind": "rotary", "fraction": 1.0, "layout": "interleaved"}


# Of the imaginary parts that give second derivatives: its square is lost in any precision, and
# what it is multiplied by does not make it vanish in float32.
STEP = 1e-15


class Yardstick:
    """Results by name: "output", "scores", "gradient of NAME", "second of NAME".

    With `directions`, the derivatives of the gradients along them are among the results. The
    imaginary part of f(x + i step) is step f'(x), and no difference is taken (Squire and Trapp
    1998). Central differences were wrong by the square of their step times third derivatives,
    which are 1e6 where a norm divides by a small number.
    """

    def __init__(self, config, data, weights, upstreams, trained, directions=None):
        self.config, self.data, self.weights = config, data, weights
        self.upstreams, self.trained = upstreams, trained
        self.directions = directions
        self.dtype = compute_dtype(config["dtype"])
        self.expected = self.results(0.0, np.float64)
        self.errors = {}
        self.samples = 0

    def results(self, rounding, wide, rng=None):
        data, weights = self.data, self.weights
        if self.directions is not None:
            wide = np.result_type(wide, np.complex64)
            data, weights = self.moved(data), self.moved(weights)
        # TensorFlow adds up the gradient of a bias in bfloat16, token by token.
        in_bfloat16 = self.dtype == "bfloat16" and keras.backend.backend() == "tensorflow"
        # What XLA and Eigen compute is off by up to 4.5 roundings in float32, and for many numbers
        # near 1 in one direction, which random errors are not.
        is_rough = self.dtype == "float32" and keras.backend.backend() in ("jax", "tensorflow")
        tanh = 8.0 if is_rough else 1.0
        tape = Tape(rounding, SMALLEST[self.dtype], rng, wide, in_bfloat16, tanh)
        output, scores, leaves, _ = evaluate(tape, self.config, data, weights)
        found = {"output": output.value}
        upstreams = [(output, self.upstreams["output"])]
        if self.config["scores"]:
            found["scores"] = scores.value
            if self.config["differentiate_scores"]:
                upstreams.append((scores, self.upstreams["scores"]))
        tape.backward(*upstreams)
        found |= {f"gradient of {name}": leaves[name].gradient for name in self.trained}
        seconds = {}
        if self.directions is not None:
            seconds = {
                f"second of {name}": np.imag(leaves[name].gradient).astype(float) / STEP
                for name in self.trained
            }
        return {name: np.real(x) for name, x in found.items()} | seconds

    def moved(self, arrays):
        steps = {n: 1j * STEP * x for n, x in self.directions.items() if n in arrays}
        return arrays | {name: arrays[name] + step for name, step in steps.items()}

    def wrong(self, found):
        """The names of results that are off, each with how far and how far they may be."""
        return {name: why for name, x in found.items() if (why := self.off(name, x))}

    def off(self, name, found):
        expected = self.expected[name]
        if found.shape != expected.shape:
            return f"shape {found.shape}, not {expected.shape}"
        if not np.isfinite(found).all():
            return f"{int((~np.isfinite(found)).sum())} of {found.size} not finite"
        if not found.size:
            return None
        error = float(abs(found - expected).max())
        largest = float(abs(expected).max())
        epsilon = EPSILON[self.dtype]
        if name.endswith("of attention_bias"):  # it has the dtype of the bias
            epsilon = max(epsilon, EPSILON[bias_dtype(self.config)])
        floor = 4 * epsilon * largest + 4 * SMALLEST[self.dtype]
        if error <= floor:
            return None
        for count in SAMPLES:
            self.sample(count)
            factor = 8 if name.startswith("second of ") else 3
            if self.errors[name] > largest:
                # No digit is right: the tail of such errors is long, and few samples show it.
                factor *= 10
            allowed = factor * self.errors[name] + floor
            if error <= allowed:
                return None
        return f"error {error:.3g}, allowed {allowed:.3g}, largest {largest:.3g}"

    def sample(self, count):
        """Errors of the formula in this precision, the largest of `count` samples."""
        while self.samples < count:
            self.samples += 1
            rng = np.random.default_rng(self.samples)
            # Sums are float32's in low precision too.
            wide = np.float64 if self.dtype == "float64" else np.float32
            for name, x in self.results(EPSILON[self.dtype], wide, rng).items():
                error = abs(x - self.expected[name]).max(initial=0.0)
                self.errors[name] = max(self.errors.get(name, 0.0), float(error))


def evaluate(tape, config, data, weights):
    """Nodes of the output and the scores, the leaves by name, and the visible pairs."""
    if config["kind"] == "function":
        return evaluate_function(tape, config, data)
    rank = data["query"].ndim
    inputs = {name: data[name] for name in ("query", "value", "key") if name in data}
    kind, further, position = tape_attention.Layer, {}, config["position"]
    if config["kind"] == "mla":
        kind, further = tape_attention.LatentLayer, {"rotary_dim": config["rotary_dim"]}
        position = position or LATENT_POSITION
    layer = kind(
        weights,
        resolved_axes(config["axes"], rank),
        window=config["window"],
        cap=config["cap"],
        position=position,
        single=config["dtype"] != "float64",
        norm=norm_of(config["qk_norm"]),
        scale=None if config["scale"] == "learned" else config["scale"],
        value_norm=config["value_norm"],
        query_scale=config["query_scale"],
        rule=None if config["rule"] is None else lambda q, k: visible_by_rule(config["rule"], q, k),
        **further,
    )
    causal = config["causal_layer"] if config["causal"] is None else config["causal"]
    # Of real positions, later keys closer than 1 are in the chunk or window of a query.
    rules = [["window", config["window"], config["window"]]] if config["window"] else []
    rules += [config["rule"]] if config["rule"] is not None else []
    only_earlier = causal or any(map(is_causal_rule, rules))
    key = data.get("key", data.get("value", data["query"]))
    rate = config["rate"] if config["training"] else 0.0
    query_mask, key_mask = padding_masks(config, data)
    batches = layer.with_sizes(data["query"], key).batch_sizes
    return layer(
        tape,
        inputs,
        mask=data.get("attention_mask"),
        bias=data.get("attention_bias"),
        query_mask=query_mask,
        key_mask=key_mask,
        segments=tokens_of_batches(data.get("segment_ids"), batches),
        bidirectional=tokens_of_batches(data.get("bidirectional"), batches),
        **places_of_batches(config, data, batches),
        causal=causal,
        only_earlier=only_earlier,
        keep_seed=data.get("seed words"),
        rate=rate,
    )


def norm_of(drawn):
    """The options of `tape_attention.Layer` for a drawn `qk_norm`."""
    if not drawn:
        return None
    left_out = ("learned", "per_head", "bias")
    return {} if drawn is True else {n: x for n, x in drawn.items() if n not in left_out}


def visible_by_rule(described, q, k):
    """What a mask of `draws.mask_rule()` says of arrays of positions."""
    kind, *given = described
    if kind in ("and", "or", "not"):
        parts = [visible_by_rule(part, q, k) for part in given]
        joins = {"and": np.logical_and, "or": np.logical_or}
        return ~parts[0] if kind == "not" else joins[kind](*parts)
    if kind == "blocks":
        matrix, size = np.array(given[0], bool), given[1]
        row, column = (np.floor_divide(x, size).astype(int) for x in (q, k))
        inside = (row >= 0) & (row < len(matrix)) & (column >= 0) & (column < len(matrix))
        return inside & matrix[np.where(inside, row, 0), np.where(inside, column, 0)]
    rules = {
        "causal": lambda: k <= q,
        "window": lambda before, after: (q - before < k) & (k < q + after),
        "chunk": lambda size: np.floor_divide(q, size) == np.floor_divide(k, size),
        "prefix": lambda n: k < n,
        "dilated": lambda step: (q - k) % step == 0,
        "function": lambda number: (q + 2 * k) % 5 < number % 5,
    }
    return rules[kind](*given)


def is_causal_rule(described):
    """Whether it is known that no query sees a later key: relative positions then differ."""
    kind, *given = described
    if kind == "not":
        inner, *parts = given[0]
        return inner == "not" and is_causal_rule(parts[0])
    if kind in ("and", "or"):
        return (any if kind == "and" else all)(map(is_causal_rule, given))
    last = {"window": lambda: given[1] == 1, "chunk": lambda: given[0] == 1}
    return kind == "causal" or (kind in last and last[kind]())


def tokens_of_batches(tokens, batches):
    """(B|1, T, ...) for each of the folded batch axes, the first one slowest."""
    if tokens is None:
        return None
    rows = np.broadcast_to(tokens, (batches[0], *tokens.shape[1:]))
    return np.repeat(rows, int(np.prod(batches[1:])), axis=0)


def places_of_batches(config, data, batches):
    """Positions of one axis, or of several as `coordinates`."""
    if config["coordinates"] is None:
        return {"positions": tokens_of_batches(data.get("positions"), batches)}
    if config["coordinates"] != "grid":
        return {"coordinates": tokens_of_batches(data["positions"], batches)}
    sizes = [config["lengths"][axis - 1] for axis in resolved_axes(config["axes"], 4)]
    grid = np.indices(sizes).reshape(len(sizes), -1)
    return {"coordinates": grid.T[None]}


def padding_masks(config, data):
    """What marks padded queries and keys, all sources combined: the axes of the inputs."""
    own = "value" not in data

    def joined(*names):
        given = [data[name] for name in names if name in data]
        return np.logical_and.reduce(given) if given else None

    query = joined("query_mask", "query attached")
    keys = ["value_mask", "key_mask", "key attached"]
    keys.append("query attached" if own else "value attached")
    return query, joined(*keys)


def evaluate_function(tape, config, data):
    names = ("query", "key", "value", "attention_bias", "sink")
    leaves = {name: tape.leaf(data[name]) for name in names if name in data}
    B, T, N, _ = data["query"].shape
    S = data["key"].shape[1]
    bias = leaves.get("attention_bias")
    segments = {}
    if config["segments"]:
        segments = {
            name: data["segment_ids"] if "segment_ids" in data else data[name]
            for name in ("query_segments", "key_segments")
        }
    seen = tape_attention.visible(
        (B, N, T, S),
        mask=data.get("attention_mask"),
        causal=config["causal"],
        window=config["window"],
        **segments,
    )
    keep = None
    if config["rate"]:
        words = (data["seed"], 0)
        keep = tape_attention.kept_weights(words, (B, N, T, S), config["rate"])
    output, weights = tape_attention.attention(
        tape,
        leaves["query"],
        leaves["key"],
        leaves["value"],
        seen,
        scale=config["scale"],
        biases=[] if bias is None else [tape.reshape(bias, full_shape(bias.value.shape))],
        cap=config["cap"],
        sink=leaves.get("sink"),
        keep=keep,
        rate=config["rate"],
    )
    return output, weights, leaves, seen


def full_shape(shape):
    return (shape[0], 1, *shape[1:]) if len(shape) == 3 else (1,) * (4 - len(shape)) + shape
