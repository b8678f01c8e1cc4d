"""Sizes from a mistake or a hostile config: an error at once, before anything is allocated."""

import re
import tracemalloc

import keras
import numpy as np
import pytest

from kerasattention import (
    AlibiPosition,
    GroupQueryAttention,
    LatentAttention,
    MultiHeadAttention,
    RelativePosition,
    RotaryPosition,
    attention_scores,
    enable_lora,
    pack_sequences,
)
from kerasattention.checks import divisors

HUGE = 2**31 - 1
WIDE = r"heads times their size must be at most 1048576.*2147483647"


def built(shape=(None, 3, 8), **options):
    MultiHeadAttention(2, 4, **options).build(shape)


def table_from_config(**config):
    entry = keras.saving.serialize_keras_object(RelativePosition())
    entry |= {"build_config": {"num_heads": config.pop("heads")}} if "heads" in config else {}
    return keras.saving.deserialize_keras_object({**entry, "config": {**entry["config"], **config}})


CALLS = {
    "prime heads": (lambda: GroupQueryAttention(4, HUGE, 2), r"can be one of \[1, 2147483647\]"),
    "beyond 64 bits": (lambda: GroupQueryAttention(4, 10**30, 7), r"can be one of \[1, 10+\]"),
    "heads": (lambda: GroupQueryAttention(4, HUGE, 1), WIDE),
    "head size": (lambda: MultiHeadAttention(2, HUGE), WIDE),
    "value size": (lambda: MultiHeadAttention(2, 4, value_dim=HUGE), WIDE),
    "features": (lambda: built((None, 3, 2**40)), r"kernel of `query`.*1099511627776"),
    "output": (lambda: built(output_shape=HUGE), r"kernel of `attention_output`.*2147483647"),
    "outputs": (lambda: built(output_shape=(2**16, 2**16)), "at most 1073741824 numbers"),
    "seed": (lambda: MultiHeadAttention(2, 4, seed=2**31), "integer of 32 bits.*2147483648"),
    "cap": (lambda: MultiHeadAttention(2, 4, logit_soft_cap=np.inf), "positive number.*inf"),
    "buckets": (lambda: RelativePosition(HUGE - 1, HUGE), "at most 16384.*2147483646"),
    "distance": (lambda: RelativePosition(32, HUGE), "at most 262144.*2147483647"),
    "distance in a file": (lambda: table_from_config(max_distance=HUGE), "at most 262144"),
    "heads in a file": (lambda: table_from_config(heads=HUGE), "16384 heads.*2147483647"),
    "theta": (lambda: RotaryPosition(10**400), "`theta` must be a number"),
    "scaling": (
        lambda: built(position=RotaryPosition(scaling={"type": "linear", "factor": np.inf})),
        "`factor` of `scaling` must be a positive number",
    ),
    "slope": (lambda: AlibiPosition([10**400]), "`slopes` must be"),
    "row": (lambda: pack_sequences([[1, 2]], HUGE), "at most 16777216 for 2 tokens.*2147483647"),
    "token": (lambda: pack_sequences([[1, 2**40]], 8), "32 bits.*sequence 1.*1099511627776"),
}


@pytest.mark.parametrize("name", CALLS)
def test_absurd_sizes_are_refused_before_anything_is_allocated(name):
    call, message = CALLS[name]
    table_from_config()  # Keras imports what it needs for that only now
    tracemalloc.start()
    try:
        with pytest.raises((ValueError, TypeError), match=f"(?s){message}"):
            call()
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


def one_head(query=1, key=1, value=1, size=1, **options):
    layer = MultiHeadAttention(1, size, **options)
    layer.build((None, 3, query), (None, 3, value), (None, 3, key))


def latent(features=1, heads=1, size=2, rank=1, **options):
    LatentAttention(heads, size, rank, rotary_dim=2, **options).build((None, 3, features))


MANY, WIDTH = 2**12, 2**19
KERNELS = {
    "query": (lambda: one_head(query=MANY, size=WIDTH), (MANY, 1, WIDTH)),
    "key": (lambda: one_head(key=MANY, size=WIDTH, value_dim=1), (MANY, 1, WIDTH)),
    "value": (lambda: one_head(value=MANY, value_dim=WIDTH), (MANY, 1, WIDTH)),
    "attention_output": (
        lambda: one_head(value_dim=WIDTH, output_shape=(MANY,)),
        (1, WIDTH, MANY),
    ),
    "gate": (
        lambda: one_head(MANY, value_dim=WIDTH, use_gate=True, output_shape=(1,)),
        (MANY, 1, WIDTH),
    ),
    "query_latent": (lambda: latent(MANY, query_rank=WIDTH), (MANY, WIDTH)),
    "latent": (lambda: latent(MANY, rank=WIDTH), (MANY, WIDTH + 2)),
    "key of latents": (lambda: latent(heads=2, size=WIDTH // 2, rank=MANY, value_dim=1), None),
    "value of latents": (lambda: latent(heads=2, rank=MANY, value_dim=WIDTH // 2), None),
    "gate of latents": (
        lambda: latent(MANY, heads=2, value_dim=WIDTH // 2, use_gate=True),
        None,
    ),
    "query of latents": (lambda: latent(MANY, heads=2, size=WIDTH // 2), None),
    "attention_output of latents": (lambda: latent(MANY, heads=2, value_dim=WIDTH // 2), None),
}


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_that_is_too_large_is_named(name):
    build, shape = KERNELS[name]
    shapes = {
        "key of latents": (MANY, 2, WIDTH // 2),
        "value of latents": (MANY, 2, WIDTH // 2),
        "gate of latents": (MANY, 2, WIDTH // 2),
        "query of latents": (MANY, 2, WIDTH // 2 + 2),
        "attention_output of latents": (2, WIDTH // 2, MANY),
    }
    shape = re.escape(str(shape or shapes[name]))
    with pytest.raises(ValueError, match=rf"kernel of `{name.split()[0]}`.*shape {shape}"):
        build()


def test_ranks_and_rows_that_a_model_does_not_have_are_refused():
    model = keras.Sequential([keras.Input((3, 8)), MultiHeadAttention(2, 4, name="a")])
    with pytest.raises(ValueError, match=r"`rank` must be at most 8.*rank=2147483647"):
        enable_lora(model, HUGE)
    for rows in ([3], [HUGE], [-1], [0, 1, 2, 3]):
        with pytest.raises(ValueError, match=r"`rows` must lie between 0 and 2 in layer 'a'"):
            attention_scores(model, np.zeros((1, 3, 8), "float32"), rows=rows)


def test_divisors_are_those_that_trying_all_numbers_finds():
    for number in range(1, 200):
        assert divisors(number) == [n for n in range(1, number + 1) if number % n == 0]


def test_long_rows_and_windows_that_cost_nothing_stay_allowed():
    assert pack_sequences([[1], [2]], 2**20).tokens.shape == (1, 2**20)
    built(sliding_window=HUGE)
