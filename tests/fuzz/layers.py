"""Random layers and function calls against the float64 reference.

    python tests/fuzz/layers.py --backend torch --seconds 60 --seed 1
    python tests/fuzz/layers.py --backend torch --case 1:4567

Each case compares the output, the scores and the gradient by every input and weight, and in some
the second derivatives. A case that is refused must be refused with a `ValueError` that names an
argument and is among those listed here. Ends with status 1 if anything was found.
"""

import re
import sys

import numpy as np
import session  # sets the backend and the paths; before Keras is imported

if __name__ == "__main__":
    ARGUMENTS = session.arguments(__doc__)

import draws
from draws import compute_dtype
from yardstick import Yardstick, evaluate

from tape import Tape

# How many inputs share a configuration, which is compiled once (`--draws`), and how often each mode
# of running is drawn.
GROUPS = {"torch": 2, "tensorflow": 8, "jax": 16}
MODES = {
    "torch": {"eager": 1},
    "tensorflow": {"eager": 6, "graph": 2, "unknown": 2, "unknown batch": 2, "xla": 0.3},
    "jax": {"jit": 8, "eager": 1},
}
# Reasons for which a call may be refused.
REFUSALS = (
    r'`implementation="fused"` computes attention with a kernel',
    r"`flash_attention=True` demands a path that never holds \(T, S\) scores, and `return_att",
)
# Second derivatives may be refused, never wrong.
SECOND_REFUSALS = (r"second derivative|[Gg]radients? of gradients?|differentiat",)


class Cases:
    """Cases of one seed, by number; keeps the layer that the last case used."""

    def __init__(self, backend, seed, without, draws=None):
        self.backend, self.seed, self.without = backend, seed, without
        self.size = draws or GROUPS[backend]
        self.group = None

    def config(self, index):
        rng = np.random.default_rng([self.seed, index // self.size])
        return draws.configuration(rng, MODES[self.backend], self.without)

    def data(self, config, index):
        rng = np.random.default_rng([self.seed, index // self.size, index % self.size])
        make = draws.function_data if config["kind"] == "function" else draws.layer_data
        return make(rng, config), rng

    def run(self, index):
        """None, or a line that says what was refused; raises `session.Finding`."""
        import calls

        config = self.config(index)
        data, rng = self.data(config, index)
        with calls.precision(config), calls.blocks(config):
            try:
                if self.group is None or self.group[0] != index // self.size:
                    self.group = None
                    self.group = (index // self.size, calls.Subject(config))
                return self.compare(self.group[1], config, data, rng)
            except ValueError as error:
                return refused(error, config)

    def compare(self, subject, config, data, rng):
        dtype = compute_dtype(config["dtype"])
        weights = {
            name: draws.drawn_weight(rng, name, shape, dtype)
            for name, shape in sorted(subject.weight_shapes().items())
        }
        words = subject.seed_words()
        if words is not None:
            data["seed words"] = words
        output, scores, _, seen = evaluate(Tape(), config, data, weights)
        upstreams = {
            "output": draws.round_to(rng.normal(size=output.value.shape), dtype),
            "scores": draws.round_to(rng.normal(size=scores.value.shape), dtype),
        }
        names = [n for n in ("query", "value", "key", "attention_bias", "sink") if n in data]
        trained = names + [n for n in weights if n not in names]
        given = poisoned(rng, config, data, seen, self.without) if config["poison"] else data
        directions = None
        if config["second"]:
            directions = {name: rng.normal(size=(data | weights)[name].shape) for name in trained}
            if "attention_bias" in directions:  # its gradient has its dtype, and so has this
                directions["attention_bias"] = draws.round_to(
                    directions["attention_bias"], draws.bias_dtype(config)
                )
        found = subject.results(given, weights, upstreams, directions)
        wrong = Yardstick(config, data, weights, upstreams, trained, directions).wrong(found)
        if wrong:
            raise session.Finding(
                "; ".join(f"{name}: {why}" for name, why in wrong.items()), config
            )
        return None


def refused(error, config):
    """The refusal, with numbers left out, if it may be refused."""
    message = str(error)
    allowed = REFUSALS + (SECOND_REFUSALS if config["second"] else ())
    for pattern in allowed:
        found = re.search(pattern, message)
        if found:
            return re.sub(r"\d+", "#", message[found.start() :])[:120]
    raise session.Finding(f"refused: {message[:300]}", config) from error


def poisoned(rng, config, data, seen, without):
    """NaN or infinity in keys and values that no query may see."""
    if config["kind"] != "function":
        return data if "nan-inputs" in without else poisoned_layer(rng, config, data, seen)
    B, N, T, S = seen.shape
    K = config["K"]
    unseen = ~seen.reshape(B, K, N // K, T, S).any(axis=(2, 3))  # (B, K, S)
    unseen = np.moveaxis(unseen, 1, 2)
    bad = draws.pick(rng, np.nan, np.inf, -np.inf)
    changed = {n: np.where(unseen[..., None], bad, data[n]) for n in ("key", "value")}
    return data | changed


def poisoned_layer(rng, config, data, seen):
    """Only keys and values of their own, at places that no query of any head sees."""
    if "value" not in data or data["value"].ndim != 3:
        return data
    unseen = ~seen.any(axis=(1, 2))
    bad = draws.pick(rng, np.nan, np.inf, -np.inf)
    names = [name for name in ("key", "value") if name in data]
    return data | {n: np.where(unseen[..., None], bad, data[n]) for n in names}


if __name__ == "__main__":
    cases = Cases(ARGUMENTS.backend, ARGUMENTS.seed, ARGUMENTS.without, ARGUMENTS.draws)
    sys.exit(session.run("layers", cases, ARGUMENTS))
