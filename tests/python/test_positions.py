"""Positions in the kernels and in layers: biases of blocks, files, shared tables, errors."""

import itertools

import keras
import numpy as np
import pytest

import position_reference as formulas
import reference
from backends import JIT, sampled, tensor, to_numpy, value_and_gradients
from kerasattention import (
    AlibiPosition,
    GroupQueryAttention,
    MultiHeadAttention,
    RelativePosition,
    RotaryPosition,
)
from kerasattention.attend import api
from kerasattention.attend.mask import AttentionMask
from kerasattention.attend.tensors import Span
from kerasattention.positions.alibi import AlibiBias, alibi_slopes
from kerasattention.positions.buckets import BucketBias, distance_buckets
from position_reference import KEYS_PER_SAMPLE, PER_SAMPLE, B, K, N, S, T, numbers
from problems import block_size

# Biases in the engine -------------------------------------------------------------------

COUNT, FARTHEST = 6, 17  # so that a block of 13 x 17 reaches all buckets
PLACES = {
    "from 0": {},
    "causal": {"causal": True},
    "causal, window, offset": {"causal": True, "window": 5, "offset": 3},
    "offset of a cache": {"causal": True, "offset": np.array(4)},
    "positions": {"query_positions": np.arange(T) * 2, "key_positions": np.arange(S) + 1},
    "positions of each sample": {
        "causal": True,
        "query_positions": PER_SAMPLE % 19,
        "key_positions": KEYS_PER_SAMPLE % 19,
    },
}


def places(options):
    """Positions (B, T) and (B, S) that the options stand for."""
    offset = int(options.get("offset", 0))
    here = options.get("query_positions", np.arange(T) + offset)
    there = options.get("key_positions", np.arange(S))
    return np.broadcast_to(here, (B, T)), np.broadcast_to(there, (B, S))


BIASES = itertools.product(("alibi", "buckets"), PLACES, ("plain", "blocked"))
ON_JAX = [
    ("alibi", "causal, window, offset", "blocked"),
    ("alibi", "positions of each sample", "plain"),
    ("buckets", "from 0", "plain"),
    ("buckets", "offset of a cache", "blocked"),
    ("buckets", "positions", "blocked"),
    ("buckets", "positions of each sample", "blocked"),
]


@pytest.mark.parametrize(("kind", "place", "implementation"), sampled(BIASES, ON_JAX))
def test_biases_in_both_kernels(kind, place, implementation):
    """Output and gradients, the table's too, against the reference with the whole bias."""
    options = PLACES[place]
    here, there = places(options)
    causal = options.get("causal", False)
    arrays = {
        "query": numbers(B, T, N, 6),
        "key": numbers(B, S, K, 6, seed=1),
        "value": numbers(B, S, K, 5, seed=2),
    }
    if kind == "alibi":
        bias = np.stack([formulas.alibi(N, *at) for at in zip(here, there, strict=True)])
    else:
        arrays["table"] = numbers(COUNT, N, seed=3)
        buckets = np.stack(
            [
                formulas.bucket_matrix(*at, COUNT, FARTHEST, causal)
                for at in zip(here, there, strict=True)
            ]
        )
        bias = np.moveaxis(arrays["table"][buckets], -1, 1)
    seen = reference.visible(
        B,
        N,
        T,
        S,
        causal=causal,
        window=options.get("window"),
        query_positions=here,
        key_positions=there,
    )
    named = {name: arrays[name] for name in ("query", "key", "value")} | {"seen": seen}
    upstream = numbers(B, T, N, 5, seed=4)
    expected, _ = reference.attention(**named, bias=bias)
    gradients = reference.attention_gradients(**named, bias=bias, upstream=upstream)

    described = {k: tensor(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    lookup = tuple(distance_buckets(COUNT, FARTHEST, bidirectional=not causal).tolist())

    def ours(query, key, value, table=None):
        made = AlibiBias(alibi_slopes(N)) if table is None else BucketBias(table, lookup)
        mask = AttentionMask(**described)
        return (api.attend(query, key, value, mask, biases=[made], implementation=implementation),)

    with block_size(5):
        (output,), found = value_and_gradients(
            ours, {name: tensor(x) for name, x in arrays.items()}, tensor(upstream)
        )
    np.testing.assert_allclose(output, expected, atol=1e-5)
    for name in ("query", "key", "value"):
        np.testing.assert_allclose(found[name], gradients[name], atol=2e-5)
    if kind == "buckets":
        by_bucket = np.zeros((COUNT, N))
        np.add.at(by_bucket, buckets, np.moveaxis(gradients["bias"], 1, -1))
        np.testing.assert_allclose(found["table"], by_bucket, atol=5e-5)


def test_far_blocks_share_the_last_bucket():
    table = numbers(COUNT, N)
    bias = BucketBias(tensor(table), tuple(distance_buckets(COUNT, FARTHEST, True).tolist()))
    block = to_numpy(bias.block(AttentionMask(), Span(500, 3), Span(0, 4)))
    np.testing.assert_allclose(block, np.broadcast_to(table[2][:, None, None], (1, N, 3, 4)), 1e-6)


# In layers ------------------------------------------------------------------------------

POSITIONS = {
    "rotary": lambda: RotaryPosition(theta=100.0, layout="interleaved"),
    "yarn": lambda: RotaryPosition(
        scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    ),
    "alibi": AlibiPosition,
    "relative": lambda: RelativePosition(COUNT, FARTHEST),
}


@pytest.mark.parametrize("make", POSITIONS.values(), ids=POSITIONS)
def test_positions_come_back_from_configs_and_files(make, tmp_path):
    inputs = keras.Input((None, 8))
    layer = GroupQueryAttention(4, 6, 2, position=make(), use_causal_mask=True)
    model = keras.Model(inputs, layer(inputs))
    x = numbers(2, 11, 8).astype("float32")
    expected = to_numpy(model(x))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(to_numpy(loaded(x)), expected, rtol=1e-6, atol=1e-6)
    config = layer.get_config()
    assert GroupQueryAttention.from_config(config).get_config() == config
    # Positions matter, and given ones are those that stand for themselves.
    same = np.broadcast_to(np.arange(11), (2, 11))
    np.testing.assert_allclose(to_numpy(layer(x, positions=same)), expected, atol=1e-6)
    assert np.abs(to_numpy(layer(x, positions=same * 3)) - expected).max() > 1e-4
    # Distances alone count.
    np.testing.assert_allclose(to_numpy(layer(x, positions=same + 40)), expected, atol=1e-5)


@pytest.mark.parametrize("make", POSITIONS.values(), ids=POSITIONS)
def test_steps_with_an_offset_continue_the_whole(make):
    """Rows 7 to 10 of the whole are those of queries that stand at 7."""
    position = make()
    position.prepare(N, 6)
    if isinstance(position, RelativePosition):
        position.table.assign(numbers(COUNT, N))
    query, key, value = (tensor(numbers(B, 11, N, 6, seed=i)) for i in range(3))

    def attend(rows, offset):
        mask = AttentionMask(causal=True, offset=offset)
        queries = mask.positions_of_queries(Span(0, rows.stop - rows.start))
        keys = mask.positions_of_keys(Span(0, 11))
        rotated, _ = position.rotate(query[:, rows], key, queries, keys)
        _, keys = position.rotate(query, key, keys, keys)
        bias = position.block_bias(N, causal=True)
        return api.attend(rotated, keys, value, mask, biases=[bias])

    whole = to_numpy(attend(slice(0, 11), 0))
    for offset in (7, tensor(np.array(7))):
        part = to_numpy(attend(slice(7, 11), offset))
        np.testing.assert_allclose(part, whole[:, 7:], atol=2e-6)


def test_layers_share_a_table_trained_saved_and_loaded(tmp_path):
    shared = RelativePosition(COUNT, FARTHEST)
    inputs = keras.Input((11, 8))
    first = MultiHeadAttention(3, 4, position=shared)
    second = MultiHeadAttention(3, 4, position=shared, use_causal_mask=True)
    model = keras.Model(inputs, second(first(inputs)))
    assert len(model.weights) == 2 * 8 + 1
    before = to_numpy(shared.table.value)
    x = numbers(4, 11, 8).astype("float32")
    model.compile("sgd", "mse", jit_compile=JIT)
    model.fit(x, x[::-1], epochs=1, verbose=0)
    assert np.abs(to_numpy(shared.table.value) - before).max() > 0
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    tables = {id(layer.position.table) for layer in loaded.layers[1:]}
    assert len(tables) == 1
    assert len(loaded.weights) == 2 * 8 + 1
    np.testing.assert_allclose(to_numpy(loaded(x)), to_numpy(model(x)), atol=1e-6)
    model.save_weights(tmp_path / "model.weights.h5")
    shared.table.assign(before)
    model.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_allclose(to_numpy(loaded(x)), to_numpy(model(x)), atol=1e-6)


def test_the_table_is_float32_whatever_the_policy():
    layer = MultiHeadAttention(3, 4, position=RelativePosition(), dtype="mixed_bfloat16")
    x = numbers(2, 7, 8).astype("float32")
    layer(x)
    layer.position.table.assign(np.full((32, 3), 1.001))
    bias = layer.position.block_bias(3, causal=False)
    block = to_numpy(bias.block(AttentionMask(), Span(0, 2), Span(0, 2)))
    np.testing.assert_allclose(block, 1.001, rtol=1e-6)


def test_a_table_gives_its_biases_to_look_at():
    position = RelativePosition(COUNT, FARTHEST)
    position.prepare(N, 0)
    distances = np.arange(-20, 21).reshape(1, 41)
    found = to_numpy(position(tensor(distances)))
    rows = [formulas.bucket(d, COUNT, FARTHEST, False) for d in distances[0]]
    np.testing.assert_allclose(found[0], to_numpy(position.table.value)[rows], rtol=1e-6)


# Errors ---------------------------------------------------------------------------------

YARN = {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}

ERRORS = {
    "theta": (lambda: RotaryPosition(theta=1.0), "`theta` must be a number above 1.*1.0"),
    "nan": (lambda: RotaryPosition(theta=float("nan")), "`theta`.*nan"),
    "fraction": (lambda: RotaryPosition(fraction=0), "`fraction`.*at most 1.*fraction=0"),
    "layout": (lambda: RotaryPosition(layout="both"), "`layout`.*interleaved.*both"),
    "scaling": (lambda: RotaryPosition(scaling="yarn"), "`scaling`.*dictionary.*'yarn'"),
    "type": (
        lambda: RotaryPosition(scaling={"type": "static", "factor": 2}),
        "`type` of.*linear.*dynamic.*static",
    ),
    "two types": (
        lambda: RotaryPosition(scaling={"type": "ntk", "rope_type": "yarn", "factor": 2}),
        "`type`.*rope_type",
    ),
    "missing": (lambda: RotaryPosition(scaling={"type": "linear"}), "needs `factor`"),
    "unknown": (
        lambda: RotaryPosition(scaling={"type": "ntk", "factor": 2, "mscale": 1}),
        'type "ntk" has no `mscale`: it takes `factor`. Received: mscale=1',
    ),
    "factor": (
        lambda: RotaryPosition(scaling={"type": "linear", "factor": 0.5}),
        "at least 1.*factor=0.5",
    ),
    "value": (lambda: RotaryPosition(scaling={**YARN, "beta_fast": "a"}), "`beta_fast`.*'a'"),
    "truncate": (lambda: RotaryPosition(scaling={**YARN, "truncate": 1}), "`truncate`.*1"),
    "order": (
        lambda: RotaryPosition(scaling={"type": "llama3", "factor": 8, "low_freq_factor": 4}),
        "`high_freq_factor`.*greater.*low_freq_factor=4",
    ),
    "odd": (
        lambda: RotaryPosition().prepare(2, 7),
        "must be even.*fraction=1.0, head size 7, which makes 7",
    ),
    "none": (lambda: RotaryPosition(fraction=0.1).prepare(2, 8), "at least 2.*makes 0"),
    "buckets": (lambda: RelativePosition(31), "`num_buckets`.*even.*31"),
    "few": (lambda: RelativePosition(2), "`num_buckets`.*at least 4.*2"),
    "distance": (lambda: RelativePosition(32, 16), "`max_distance`.*half.*max_distance=16"),
}


@pytest.mark.parametrize(("make", "message"), ERRORS.values(), ids=ERRORS)
def test_errors_say_what_and_why(make, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        make()


def test_layers_of_other_heads_cannot_share_a_table():
    shared = RelativePosition()
    x = numbers(1, 3, 4).astype("float32")
    MultiHeadAttention(2, 4, position=shared)(x)
    with pytest.raises(
        ValueError, match=r"table for 2 heads.*3 query heads.*another `RelativePosition`"
    ):
        MultiHeadAttention(3, 4, position=shared)(x)


def test_what_is_not_a_position_is_refused():
    with pytest.raises(ValueError, match=r"`position` must be.*RotaryPosition.*'rotary'"):
        MultiHeadAttention(2, 4, position="rotary")
