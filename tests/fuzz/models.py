"""Random models decoded token by token against full passes of the model.

    python tests/fuzz/models.py --backend torch --seconds 60 --seed 1
    python tests/fuzz/models.py --backend torch --case 1:4567

Each case draws a model. `generate()` is called several times, with prompts of one or of different
lengths, and an `IncrementalDecoder` is given tokens in chunks of random sizes: the logits and the
greedy tokens must be those of full passes. Only models with a hostile part may be refused.
"""

import functools
import sys

import session  # sets the backend and the paths; before Keras is imported

if __name__ == "__main__":
    ARGUMENTS = session.arguments(__doc__)

import keras
import model_draws
import numpy as np
from draws import chance, pick
from keras import ops

import kerasattention as ka
from backends import BACKEND, compiled

TOLERANCE = 1e-4


class Cases:
    def __init__(self, seed, without):
        self.seed, self.without = seed, without
        self.drawn = None

    def config(self, index):
        return {} if self.drawn is None else self.drawn.describe()

    def run(self, index):
        keras.utils.clear_session(free_memory=False)
        rng = np.random.default_rng([self.seed, index])
        # Initial weights; drawn apart, so that cases stay what they were.
        keras.utils.set_random_seed(
            int(np.random.SeedSequence([index, self.seed]).generate_state(1)[0])
        )
        self.drawn = drawn = model_draws.Drawn(rng, self.without)
        checks = [check_generate, check_generate, check_steps]
        if BACKEND != "torch":
            checks = [pick(rng, check_generate, check_steps)]
        try:
            for check in checks:
                check(rng, drawn)
        except ValueError as error:
            message = str(error)
            if "cannot be decoded" in message and drawn.hostile:
                return message.split("token by token: ")[-1].split("(")[0][:90]
            if "because of a trial on random tokens, but after" in message and drawn.hostile:
                return "a check of its tokens against a full pass"
            raise session.Finding(f"refused: {message[:300]}", drawn.describe()) from error
        return None


def check_generate(rng, drawn):
    rows = pick(rng, 1, 1, 2, 3)
    given = model_draws.prompts(rng, drawn, rows, ragged=chance(rng, 0.5))
    count = int(rng.integers(1, 25))
    numbers = drawn_numbers(rng, drawn, given, count)
    step = {}
    if "positions" in drawn.given:
        step = {"position_step": continue_positions(rng, drawn, numbers, given)}
    found = ka.generate(drawn.model, given, count, inputs=of_prompts(numbers, given), **step)
    for prompt, row in zip(given, found, strict=True):
        if not np.array_equal(row[: len(prompt)], prompt) or len(row) != len(prompt) + count:
            raise session.Finding(f"not a continuation: {prompt} to {row}", drawn.describe())
    expected = full_passes(drawn, found, [len(prompt) for prompt in given], numbers)
    for number, (row, prompt, logits) in enumerate(zip(found, given, expected, strict=True)):
        at_padding = False
        for at, (token, these) in enumerate(zip(row[len(prompt) :], logits[:-1], strict=True)):
            if at_padding:  # what Keras's layers give there depends on later tokens
                break
            at_padding = token == 0 and drawn.first == 1
            # Ties within rounding may fall either way.
            behind = these.max() - these[token]
            if behind <= TOLERANCE * max(1.0, abs(these).max()):
                continue
            starts = [len(prompt) for prompt in given]
            changed = changed_by_rounding(drawn, found, starts, numbers, expected)
            if not behind <= 2 * changed[number][at]:
                raise session.Finding(
                    f"generate() gave {token}, {behind:.3g} behind {these.argmax()}; prompts of "
                    f"{[len(p) for p in given]} and {count} new tokens",
                    drawn.describe(),
                )


def check_steps(rng, drawn):
    rows = pick(rng, 1, 2, 3)
    given = model_draws.prompts(rng, drawn, rows, ragged=chance(rng, 0.4))
    longest = max(len(row) for row in given)
    decoder = ka.IncrementalDecoder(drawn.model, rows, 40)
    numbers = drawn_numbers(rng, drawn, given, 64)
    prefilled = decoder.prefill(given, of_prompts(numbers, given))
    found, ends = [numpy(prefilled)], [longest]
    wanted = 60 if decoder.unlimited and drawn.length is None else 38
    while ends[-1] < wanted and len(found) < (30 if BACKEND == "torch" else 12):
        size = min(pick(rng, 1, 1, 1, 2, 3, 5, 9), wanted - ends[-1])
        more = rng.integers(drawn.first, drawn.vocabulary, (rows, size)).astype("int32")
        given = [np.concatenate(pair) for pair in zip(given, more, strict=True)]
        places = of_step(numbers, given, size)
        found.append(numpy(decoder.step(more[:, 0] if size == 1 else more, **places)))
        ends.append(ends[-1] + size)
    # A row that was padded by some tokens ends so many earlier.
    shorter = [longest_now - len(row) for row in given for longest_now in [ends[-1]]]
    passes = full_passes(drawn, given, [1] * rows, numbers)
    for row, logits in enumerate(passes):
        for end, these in zip(ends, found, strict=True):
            expected = logits[end - shorter[row] - 1]
            error = abs(these[row] - expected).max()
            if error <= TOLERANCE * max(1.0, abs(expected).max()):
                continue
            changed = changed_by_rounding(drawn, given, [1] * rows, numbers, passes)
            if not error <= changed[row][end - shorter[row] - 1]:
                raise session.Finding(
                    f"logits after token {end} of row {row} off by {error:.3g}; ends {ends}, "
                    f"padding {shorter}",
                    drawn.describe(),
                )


def drawn_numbers(rng, drawn, given, count):
    """For each further input, a number for each token of each row and of `count` more."""
    return {
        name: [
            model_draws.drawn_numbers(
                rng, name, len(prompt), len(prompt) + count, drawn.position_axes
            )
            for prompt in given
        ]
        for name in drawn.given
    }


def continue_positions(rng, drawn, numbers, given):
    """Has the positions go on behind the largest of each prompt; returns the step, or None for 1.

    Those of several axes only behind the largest of the last segment, if the model has segments.
    """
    index = [spec.name for spec in drawn.model.inputs].index("positions")
    real = "float" in drawn.model.inputs[index].dtype
    step = pick(rng, 1, 2) if real else pick(rng, None, 3)
    for i, prompt in enumerate(given):
        places, end = numbers["positions"][i], len(prompt)
        own = np.ones(end, bool)
        if "segment_ids" in numbers:
            own = numbers["segment_ids"][i][:end] == numbers["segment_ids"][i][end - 1]
        later = places[:end][own].max() + (step or 1) * np.arange(1, len(places) - end + 1)
        places[end:] = later.reshape(-1, *[1] * (places.ndim - 1))
    return step


def padded(x, widths, **options):
    """Numbers (t, ...) with more at the ends of the first axis."""
    return np.pad(x, (widths, *[(0, 0)] * (x.ndim - 1)), **options)


def of_prompts(numbers, given):
    """The inputs of the prompts, padded on the left as these are; None without any."""
    longest = max(len(prompt) for prompt in given)
    return {
        name: np.stack(
            [
                padded(row[: len(prompt)], (longest - len(prompt), 0))
                for row, prompt in zip(rows, given, strict=True)
            ]
        )
        for name, rows in numbers.items()
    } or None


def of_step(numbers, given, size):
    """Argument of a step of so many tokens, which `given` ends with: their positions."""
    if "positions" not in numbers:
        return {}
    rows = zip(numbers["positions"], given, strict=True)
    places = np.stack([row[len(tokens) - size : len(tokens)] for row, tokens in rows])
    return {"inputs": {"positions": places}}


def full_passes(drawn, rows, starts, numbers):
    """Logits after each token of each row from the `starts`-th on, the last token left out or not.

    One pass of each row; where a part is hostile one pass of each prefix.
    """
    if drawn.hostile:
        return [
            np.stack([full_pass(drawn.model, row[:end])[-1] for end in range(start, len(row) + 1)])
            for row, start in zip(rows, starts, strict=True)
        ]
    length = max(len(row) for row in rows)
    if drawn.length:
        length = drawn.length
    filled = np.stack([np.pad(row, (0, length - len(row)), constant_values=1) for row in rows])
    others = [
        np.stack([padded(row[:length], (0, max(length - len(row), 0)), mode="edge") for row in x])
        for x in numbers.values()
    ]
    output = full_pass(drawn.model, filled, *others)
    return [x[start - 1 : len(row)] for x, row, start in zip(output, rows, starts, strict=True)]


def changed_by_rounding(drawn, rows, starts, numbers, passes):
    """For each token of each row, four times what its logits change with the weights' last digit.

    Normalised heads of two features, almost equal, are 1 and -1 or the reverse: such a model has
    few digits, however it is computed.
    """
    weights, rng = drawn.model.get_weights(), np.random.default_rng(0)
    most = [np.zeros(len(logits)) for logits in passes]
    for _ in range(4):
        drawn.model.set_weights([changed_in_last_digit(rng, x) for x in weights])
        others = full_passes(drawn, rows, starts, numbers)
        pairs = zip(most, others, passes, strict=True)
        most = [np.maximum(so_far, abs(a - b).max(axis=-1)) for so_far, a, b in pairs]
    drawn.model.set_weights(weights)
    return [4 * changes for changes in most]


def changed_in_last_digit(rng, x):
    if x.dtype.kind != "f":
        return x
    steps = rng.integers(-1, 2, x.shape)
    return (x * (1 + np.finfo(x.dtype).eps * steps)).astype(x.dtype)


def full_pass(model, tokens, *others):
    tokens = np.asarray(tokens)
    alone = tokens.ndim == 1
    given = [ops.convert_to_tensor(tokens[None] if alone else tokens)]
    given += [
        ops.convert_to_tensor(x.astype(spec.dtype))
        for x, spec in zip(others, model.inputs[1:], strict=True)
    ]
    if BACKEND == "jax":
        state = [v.value for v in model.trainable_variables]
        rest = [v.value for v in model.non_trainable_variables]
        output = compiled_pass(model)(state, rest, given)
    else:
        output = model(given, training=False)
    return numpy(output)[0] if alone else numpy(output)


@functools.lru_cache(maxsize=2)
def compiled_pass(model):
    return compiled(lambda *given: model.stateless_call(*given, training=False)[0])


def numpy(x):
    return np.asarray(ops.convert_to_numpy(x), dtype=np.float64)


if __name__ == "__main__":
    cases = Cases(ARGUMENTS.seed, ARGUMENTS.without)
    sys.exit(session.run("models", cases, ARGUMENTS))
