"""Generation with a key/value cache: what heads, length and R cost."""

from measure import interleaved, run_r, summary, timed
from registry import BACKENDS, Case, Floor, Settings

BATCH, CACHED, N, H, D = 8, 4096, 32, 64, 512
KV_HEADS = (32, 8, 1)


def decoder_of(kv_heads, length=CACHED, batch=BATCH, window=None):
    """One layer of features, so that a step is the layer's alone."""
    import keras

    import kerasattention as ka

    x = keras.Input((None, D))
    layer = ka.GroupQueryAttention(H, N, kv_heads, sliding_window=window)
    model = keras.Model(x, layer(x, use_causal_mask=True))
    return ka.IncrementalDecoder(model, batch, length)


def step_at_the_end(kv_heads, rounds):
    """Fills a cache with random tokens, but for room for some steps; gives a step.

    Filled, since pages of zeros that were never written need no memory.
    """
    import numpy as np
    from keras import ops

    from runners import tensor

    decoder = decoder_of(kv_heads)
    chunk = 128  # whose scores against all keys take half a GB
    tokens = np.random.default_rng(1).standard_normal((BATCH, chunk, D), dtype="float32")
    decoder.prefill(tokens)
    while decoder.length + chunk <= CACHED - rounds:
        decoder.step(tokens)
    one = tensor((BATCH, D))
    return lambda: ops.convert_to_numpy(decoder.step(one))


def step_by_kv_heads(settings: Settings) -> dict:
    rounds = settings.rounds[1] + 2
    runs = {f"K = {k}": step_at_the_end(k, rounds) for k in KV_HEADS}
    found = interleaved(runs, settings.seconds, settings.rounds)
    times = {label: summary(seconds) for label, seconds in found.items()}
    ratio = lambda a, b: times[f"K = {a}"]["median"] / times[f"K = {b}"]["median"]  # noqa: E731
    megabytes = 2 * BATCH * CACHED * N * H * 4 / 1e6
    note = f"K = 32 reads {megabytes:.0f} MB; K = 1 is {ratio(8, 1):.1f} times faster than K = 8"
    return {"times": times, "ratio": ratio(32, 8), "note": note}


def cache_size(settings: Settings) -> dict:
    """Bytes that the caches hold, over those that the formula gives: exactly 1."""
    import math

    from keras import backend, tree

    shares, sizes = [], []
    for kv_heads, window, slots in ((8, None, CACHED), (1, None, CACHED), (8, 256, 256)):
        runner = decoder_of(kv_heads, window=window)._runner
        storage = getattr(runner, "storage", None)
        held = [
            getattr(where, name)
            for where, name in ((runner, "arrays"), (storage, "variables"), (storage, "tensors"))
            if hasattr(where, name)
        ]
        arrays = tree.flatten(held)
        found = sum(math.prod(x.shape) * 4 for x in arrays)
        assert {backend.standardize_dtype(x.dtype) for x in arrays} == {"float32"}
        shares.append(found / (2 * BATCH * slots * kv_heads * H * 4))
        sizes.append(f"{found / 1e6:.1f} MB")
    note = "K = 8: {}; K = 1: {}; K = 8, window 256: {}".format(*sizes)
    share = max(shares) if max(shares) > 1 else min(shares)
    return {"share": share, "note": note}


def small_model(vocabulary=1009, width=256, blocks=2):
    """A language model of the usual make."""
    import keras
    from keras import layers

    import kerasattention as ka

    tokens = keras.Input((None,), dtype="int32")
    x = layers.Embedding(vocabulary, width)(tokens)
    for _ in range(blocks):
        attention = ka.GroupQueryAttention(32, 8, 2, position=ka.RotaryPosition())
        x = x + attention(layers.RMSNormalization()(x), use_causal_mask=True)
        hidden = layers.Dense(4 * width, activation="silu")(layers.RMSNormalization()(x))
        x = x + layers.Dense(width)(hidden)
    return keras.Model(tokens, layers.Dense(vocabulary)(layers.RMSNormalization()(x)))


def thousand_steps(settings: Settings) -> dict:
    """Step by step, as far as 1,000 tokens; and one full pass at either end."""
    import time

    import kerasattention as ka
    from runners import compiled, tensor

    model = small_model()
    decoder = ka.IncrementalDecoder(model, 1, 1024)
    one = [7]
    decoder.prefill([one])
    for _ in range(8):  # what is compiled or recorded in the first steps
        _wait(decoder.step(one))
    decoder.reset()
    _wait(decoder.prefill([one]))
    seconds = []
    for _ in range(1000):
        started = time.perf_counter()
        _wait(decoder.step(one))
        seconds.append(time.perf_counter() - started)
    times = {"first 100 steps": summary(seconds[:100]), "last 100 steps": summary(seconds[-100:])}
    for length in (100, 1000):
        tokens = tensor((1, length), dtype="int32")
        run = compiled(lambda x: model(x, training=False), tokens)
        times[f"full pass of {length}"] = summary(timed(run, 5))
    ratio = times["last 100 steps"]["median"] / times["first 100 steps"]["median"]
    return {"times": times, "ratio": ratio, "note": "the ratio is that of last over first"}


def _wait(logits):
    from keras import ops

    return ops.convert_to_numpy(logits)


def share_of_r(settings: Settings) -> dict:
    """R's part of generate_tokens(): its time less that of the Python function inside."""
    found = run_r("generate_tokens.R", settings.rounds[0])
    times = {name: summary(found[name]) for name in ("generate_tokens()", "Python's part")}
    return {"times": times, "share": found["share"], "note": "256 tokens after 32"}


CASES = [
    Case(
        "decode-step",
        f"one step at {CACHED} cached tokens, N = {N}, H = {H}, B = {BATCH}; K = 32 over K = 8",
        "decoding",
        step_by_kv_heads,
        floors={backend: Floor("ratio", least=3) for backend in BACKENDS},
        timeout=600,
    ),
    Case(
        "decode-cache",
        "bytes of the caches over 2 * B * length * K * H * 4",
        "decoding",
        cache_size,
        floors={backend: Floor("share", least=1, most=1) for backend in BACKENDS},
    ),
    Case(
        "decode-1000",
        "1,000 steps of a model of two layers, D = 256, B = 1",
        "decoding",
        thousand_steps,
        floors={backend: Floor("ratio", most=1.3) for backend in BACKENDS},
    ),
    Case(
        "decode-r",
        "R's share of generate_tokens(), the same model",
        "decoding",
        share_of_r,
        floors={backend: Floor("share", most=0.02) for backend in BACKENDS},
    ),
]
