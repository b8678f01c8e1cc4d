"""What the float64 reference says of a case, and how far rounding may take a result from it.

A result may be three times as far from the reference as the plain formula in the same precision
is, plus four roundings of its largest number: twice, and half as much again for the spread of the
sample. The formula's error is sampled: each operation's result gets a random relative error of one
rounding, in arithmetic of float32 (float64 for itself).
"""

import numpy as np
from draws import EPSILON, SMALLEST, bias_dtype, compute_dtype, resolved_axes

import tape_attention
from tape import Tape

SAMPLES = (2, 16, 64)


class Yardstick:
    """Results by name: "output", "scores", "gradient of NAME"."""

    def __init__(self, config, data, weights, upstreams, trained):
        self.config, self.data, self.weights = config, data, weights
        self.upstreams, self.trained = upstreams, trained
        self.dtype = compute_dtype(config["dtype"])
        self.expected = self.results(Tape())
        self.errors = {}
        self.samples = 0

    def along(self, directions, step=1e-30):
        """Derivatives of all results along directions, exact but for rounding.

        The imaginary part of f(x + i step) is step f'(x): no difference is taken, so the step may
        be so small that its square vanishes (Squire and Trapp 1998). Differences of two results
        were wrong by the square of their step, times third derivatives of 1e6 where a norm
        divides by a small number.
        """

        def moved(arrays):
            steps = {name: 1j * step * directions[name] for name in arrays if name in directions}
            return arrays | {name: arrays[name] + by for name, by in steps.items()}

        tape = Tape(dtype=np.complex128)
        found = self.results(tape, moved(self.data), moved(self.weights))
        return {name: x.imag / step for name, x in found.items()}

    def results(self, tape, data=None, weights=None):
        data = self.data if data is None else data
        weights = self.weights if weights is None else weights
        output, scores, leaves, _ = evaluate(tape, self.config, data, weights)
        found = {"output": output.value}
        upstreams = [(output, self.upstreams["output"])]
        if self.config["scores"]:
            found["scores"] = scores.value
            if self.config["differentiate_scores"]:
                upstreams.append((scores, self.upstreams["scores"]))
        tape.backward(*upstreams)
        return found | {f"gradient of {name}": leaves[name].gradient for name in self.trained}

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
        if name == "gradient of attention_bias":  # it has the dtype of the bias
            epsilon = max(epsilon, EPSILON[bias_dtype(self.config)])
        floor = 4 * epsilon * largest + 4 * SMALLEST[self.dtype]
        if error <= floor:
            return None
        for count in SAMPLES:
            self.sample(count)
            allowed = 3 * self.errors[name] + floor
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
            tape = Tape(EPSILON[self.dtype], SMALLEST[self.dtype], rng, wide)
            for name, x in self.results(tape).items():
                error = abs(x - self.expected[name]).max(initial=0.0)
                self.errors[name] = max(self.errors.get(name, 0.0), float(error))


def evaluate(tape, config, data, weights):
    """Nodes of the output and the scores, the leaves by name, and who sees whom."""
    if config["kind"] == "function":
        return evaluate_function(tape, config, data)
    rank = data["query"].ndim
    inputs = {name: data[name] for name in ("query", "value", "key") if name in data}
    layer = tape_attention.Layer(
        weights,
        resolved_axes(config["axes"], rank),
        window=config["window"],
        cap=config["cap"],
        position=config["position"],
        single=config["dtype"] != "float64",
    )
    causal = config["causal_layer"] if config["causal"] is None else config["causal"]
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
        positions=tokens_of_batches(data.get("positions"), batches),
        causal=causal,
        keep_seed=data.get("seed words"),
        rate=rate,
    )


def tokens_of_batches(tokens, batches):
    """(B|1, T) for each of the folded batch axes, the first one slowest."""
    if tokens is None:
        return None
    rows = np.broadcast_to(tokens, (batches[0], tokens.shape[1]))
    return np.repeat(rows, int(np.prod(batches[1:])), axis=0)


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
