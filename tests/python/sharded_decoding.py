"""Decoding under distributions, for `test_sharded_jax.py`; run by `sharded_cases.py`."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

import kerasattention as ka
from collectives import count_collectives
from sharded_behaviour import under
from sharded_models import HeadParallel, data_parallel, model_parallel

VOCABULARY, WIDTH, HEADS, SIZE, NEW = 61, 32, 8, 8, 11


@dataclasses.dataclass(frozen=True)
class Decoding:
    """A model of two attention layers under a distribution, and its prompts."""

    distribution: Callable[[], Any]
    rows: int = 8
    key_heads: int = 8
    options: Callable[[], dict[str, Any]] = dict
    ragged: bool = False
    encoder: bool = False
    temperature: float = 0.0


def build(case):
    keras.utils.set_random_seed(3)
    tokens = keras.Input((None,), dtype="int32")
    scale = keras.initializers.RandomNormal(stddev=1.0)
    # The encoder's keys and values are kept from the prompt on.
    source = keras.Input((9, WIDTH)) if case.encoder else None
    x = keras.layers.Embedding(VOCABULARY, WIDTH, scale, mask_zero=case.encoder)(tokens)
    for index in range(2):
        layer = ka.GroupQueryAttention(
            SIZE, HEADS, case.key_heads, use_causal_mask=True, name=f"attn{index}", **case.options()
        )
        x = keras.layers.Add()([x, layer(x)])
    if source is None:
        return keras.Model(tokens, keras.layers.Dense(VOCABULARY)(x))
    cross = ka.GroupQueryAttention(SIZE, HEADS, case.key_heads, name="cross")(x, source)
    x = keras.layers.Add()([x, cross])
    return keras.Model([source, tokens], keras.layers.Dense(VOCABULARY)(x))


def others(case):
    """The model's other inputs."""
    if not case.encoder:
        return None
    return [np.random.default_rng(2).normal(size=(case.rows, 9, WIDTH)).astype("float32")]


def prompts(case):
    numbers = np.random.default_rng(1)
    lengths = [5 + row % 3 if case.ragged else 7 for row in range(case.rows)]
    rows = [numbers.integers(1, VOCABULARY, length).astype("int32") for length in lengths]
    return rows if case.ragged else np.stack(rows)


def parts(decoder):
    """Shapes of the first cache's arrays, and of a device's part of them."""
    arrays = jax.tree.leaves(decoder._runner.arrays)
    return sorted({(x.shape, x.addressable_shards[0].data.shape) for x in arrays})


def decoded(case):
    made = functools.partial(
        ka.generate,
        tokens=prompts(case),
        max_new_tokens=NEW,
        temperature=case.temperature,
        seed=5,
        inputs=others(case),
    )
    with under(case.distribution()):
        model = build(case)
        shared = made(model)
        decoder = ka.IncrementalDecoder(model, case.rows, 64)
        placed = [parts(decoder)]
        decoder.prefill(prompts(case), others(case))
        placed.append(parts(decoder))
        runner = decoder._runner
        token = jnp.ones((case.rows, 1), "int32")
        step = runner._extend.lower(
            *(runner._weights(), runner.arrays, runner.kept, token),
            *(jnp.int32(7), None, decoder.padding),
        )
        collectives = count_collectives(step.compile().as_text())
        decoder.step(np.ones((case.rows,), "int32"))
        placed.append(parts(decoder))
    # No distribution is in force any more.
    last = decoder.step(np.ones((case.rows, 3), "int32"))
    whole = made(build(case))
    again = made(model)
    same = [np.array_equal(a, b) for a, b in zip(shared, whole, strict=True)]
    same += [np.array_equal(a, b) for a, b in zip(shared, again, strict=True)]
    return {
        "same tokens": all(same) and len(same) == 2 * case.rows,
        "distinct tokens": len(set(np.concatenate(shared).tolist())),
        "last are finite": bool(np.isfinite(np.asarray(last)).all()),
        "parts": placed[0],
        "parts stay": all(x == placed[0] for x in placed),
        "collectives": collectives,
    }


def window():
    return {"position": ka.RotaryPosition(), "sliding_window": 6}


def options():
    return {"position": ka.AlibiPosition(), "attention_sink": True, "qk_norm": True}


CASES = {
    "data 8": Decoding(data_parallel, options=window, temperature=0.9),
    "model 2x4": Decoding(lambda: model_parallel(2, 4), rows=6, options=window, ragged=True),
    "heads 2x2x2, encoder": Decoding(
        lambda: HeadParallel(2, 2, 2), rows=4, key_heads=2, encoder=True
    ),
    "heads 2x2x2": Decoding(
        lambda: HeadParallel(2, 2, 2), rows=6, key_heads=2, options=options, ragged=True
    ),
}
