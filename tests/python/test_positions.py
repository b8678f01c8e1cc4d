"""Rotary positions, linear biases and relative positions against their formulas in float64."""

import keras
import numpy as np
import pytest
from keras import ops

import position_reference as formulas
import reference
from backends import run, tensor, to_numpy, value_and_gradients
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
from kerasattention.positions.relative import (
    BucketBias,
    distance_buckets,
    spread_diagonals,
    sum_diagonals,
)
from problems import block_size

B, T, S, K, G = 2, 13, 17, 1, 3
N = K * G
PER_SAMPLE = np.random.default_rng(1).integers(0, 90, (B, T))
KEYS_PER_SAMPLE = np.random.default_rng(2).integers(0, 90, (B, S))


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


# Rotary ---------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize(("size", "fraction"), [(14, 1.0), (20, 0.5), (6, 1 / 3)])
@pytest.mark.parametrize("positions", [np.arange(5, 5 + T), PER_SAMPLE], ids=["(T)", "(B,T)"])
def test_rotary_turns_pairs_as_complex_numbers(layout, size, fraction, positions):
    query, key = numbers(B, T, N, size), numbers(B, S, K, size, seed=1)
    position = RotaryPosition(theta=70.0, fraction=fraction, layout=layout)
    rotated = run(
        lambda q, k, here, there: position.rotate(q, k, here, there),
        *(tensor(x) for x in (query, key, positions, KEYS_PER_SAMPLE)),
    )
    pairs = formulas.frequencies(70.0, round(fraction * size))
    expected = (
        formulas.rotate(query, positions, pairs, layout),
        formulas.rotate(key, KEYS_PER_SAMPLE, pairs, layout),
    )
    for found, wanted in zip(rotated, expected, strict=True):
        np.testing.assert_allclose(to_numpy(found), wanted, atol=2e-5)


def test_hand_worked_quarter_turn():
    """A frequency of 1 and of 0.1: at position 1 and 10 the second pair turns by 0.1 and 1."""
    query = tensor(np.array([1.0, 0.0, 0.0, 2.0]).reshape(1, 1, 1, 4) * np.ones((1, 2, 1, 1)))
    rotated, _ = RotaryPosition(theta=100.0).rotate(query, query, *[tensor(np.array([1, 10]))] * 2)
    expected = [
        [np.cos(1), -2 * np.sin(0.1), np.sin(1), 2 * np.cos(0.1)],
        [np.cos(10), -2 * np.sin(1), np.sin(10), 2 * np.cos(1)],
    ]
    np.testing.assert_allclose(to_numpy(rotated)[0, :, 0], expected, atol=1e-6)


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_the_gradient_of_a_turn_is_the_turn_back(layout):
    query, upstream = numbers(B, T, N, 10), numbers(B, T, N, 10, seed=3)
    position = RotaryPosition(layout=layout, fraction=0.8)
    here = tensor(PER_SAMPLE)
    _, found = value_and_gradients(
        lambda query: position.rotate(query, query[:, :, :1], here, here),
        {"query": tensor(query)},
        tensor(upstream),
    )
    pairs = formulas.frequencies(1e4, 8)
    expected = formulas.rotate(upstream, -PER_SAMPLE, pairs, layout)
    np.testing.assert_allclose(found["query"], expected, atol=2e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_angles_are_float32_in_low_precision(dtype):
    """Far positions are not numbers of bfloat16: the error must stay that of one rounding."""
    query = ops.cast(tensor(numbers(1, T, 1, 8)), dtype)
    positions = np.arange(T) + 100_001
    rotated, _ = RotaryPosition().rotate(query, query, *[tensor(positions)] * 2)
    assert keras.backend.standardize_dtype(rotated.dtype) == dtype
    expected = formulas.rotate(to_numpy(query), positions, formulas.frequencies(1e4, 8), "half")
    step = {"float16": 2**-11, "bfloat16": 2**-8}[dtype]
    # float32 itself knows an angle of 100000 to 0.004.
    assert np.abs(to_numpy(rotated) - expected).max() < 3 * step + 0.012


def wavelengths(values):
    return 2 * np.pi / np.asarray(values)


def test_linear_and_ntk_scaling():
    plain = np.array(formulas.frequencies(1e4, 16))
    linear = RotaryPosition(scaling={"type": "linear", "factor": 4}).frequencies(16)
    np.testing.assert_allclose(linear.values, plain / 4)
    ntk = RotaryPosition(scaling={"type": "ntk", "factor": 4}).frequencies(16).values
    # The fastest pair is as it was, the slowest is slowed by the factor.
    np.testing.assert_allclose([ntk[0], ntk[-1]], [plain[0], plain[-1] / 4])
    np.testing.assert_allclose(ntk, formulas.frequencies(1e4 * 4 ** (16 / 14), 16))


def test_llama3_scaling_by_wavelength():
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    found = RotaryPosition(5e5, scaling=scaling).frequencies(128).values
    plain = np.array(formulas.frequencies(5e5, 128))
    for ours, before in zip(found, plain, strict=True):
        wave = 2 * np.pi / before
        if wave < 8192 / 4:
            expected = before
        elif wave > 8192:
            expected = before / 8
        else:
            smooth = (8192 / wave - 1) / 3
            expected = (1 - smooth) * before / 8 + smooth * before
        assert ours == pytest.approx(expected, rel=1e-12)
    defaults = RotaryPosition(5e5, scaling={"type": "llama3", "factor": 8.0})
    np.testing.assert_array_equal(defaults.frequencies(128).values, found)


def test_yarn_scaling():
    scaling = {"type": "yarn", "factor": 16.0, "original_max_position_embeddings": 2048}
    found = RotaryPosition(scaling=scaling).frequencies(64)
    plain = np.array(formulas.frequencies(1e4, 64))
    turns = 2048 / wavelengths(plain)
    # Pairs that turn more than 32 times keep their frequency, those below 1 are divided.
    np.testing.assert_allclose(found.values[turns > 36], plain[turns > 36])
    np.testing.assert_allclose(found.values[turns < 0.7], plain[turns < 0.7] / 16)
    between = (turns > 1.5) & (turns < 30)
    assert np.all(found.values[between] < plain[between])
    assert np.all(found.values[between] > plain[between] / 16)
    assert found.attention_factor == pytest.approx(0.1 * np.log(16) + 1)
    explicit = {**scaling, "attention_factor": 1.3}
    assert RotaryPosition(scaling=explicit).frequencies(64).attention_factor == 1.3
    deepseek = {**scaling, "mscale": 0.7, "mscale_all_dim": 1.0}
    assert RotaryPosition(scaling=deepseek).frequencies(64).attention_factor == pytest.approx(
        (0.07 * np.log(16) + 1) / (0.1 * np.log(16) + 1)
    )


def test_the_attention_factor_multiplies_both_sides():
    query = numbers(1, T, 2, 8)
    scaling = {
        "type": "yarn",
        "factor": 2.0,
        "original_max_position_embeddings": 64,
        "attention_factor": 1.5,
    }
    position = RotaryPosition(scaling=scaling)
    rotated, _ = position.rotate(*[tensor(query)] * 2, *[tensor(np.arange(T))] * 2)
    pairs = position.frequencies(8).values
    expected = formulas.rotate(query, np.arange(T), pairs, "half", factor=1.5)
    np.testing.assert_allclose(to_numpy(rotated), expected, atol=2e-5)


# Linear biases --------------------------------------------------------------------------


def test_slopes_by_hand():
    assert alibi_slopes(1) == (2**-8,)
    assert alibi_slopes(8) == tuple(2.0**-n for n in range(1, 9))
    filled = alibi_slopes(12)
    assert filled[:8] == alibi_slopes(8)
    np.testing.assert_allclose(filled[8:], 2.0 ** -np.array([0.5, 1.5, 2.5, 3.5]))


@pytest.mark.parametrize("heads", range(1, 24))
def test_slopes_of_any_number_of_heads(heads):
    np.testing.assert_allclose(alibi_slopes(heads), formulas.slopes(heads), rtol=1e-12)


def test_slopes_given_are_those_of_the_heads():
    position = AlibiPosition([0.5, 0.125, 3])
    position.prepare(3, 7)
    assert position.block_bias(3, True).slopes == (0.5, 0.125, 3)
    assert AlibiPosition(**position.get_config()).slopes == position.slopes
    assert position.keep_heads([0, 2], 3).slopes == (0.5, 3)
    assert AlibiPosition().keep_heads([1, 3], 4).slopes == (2.0**-4, 2.0**-8)
    assert AlibiPosition().get_config() == {}
    with pytest.raises(ValueError, match="each of 4 query heads"):
        position.prepare(4, 7)
    for wrong in ([], [0.5, 0.0], [0.5, float("inf")], ["a"], [True]):
        with pytest.raises(ValueError, match=r"`slopes` must be `None` or positive.*slopes="):
            AlibiPosition(wrong)


# Buckets --------------------------------------------------------------------------------


def test_buckets_by_hand():
    """T5's: 16 a side, 8 of them exact, then powers of the square root of two from 8 to 128."""
    sides = distance_buckets(32, 128, bidirectional=True)
    at = dict(zip(range(-128, 129), sides.tolist(), strict=True))
    assert [at[-d] for d in range(8)] == list(range(8))
    assert [at[-d] for d in (8, 11, 12, 15, 16, 22, 23, 32, 64, 90, 91, 128)] == [
        *(8, 8, 9, 9, 10, 10, 11, 12, 14, 14, 15, 15)
    ]
    assert [at[d] for d in (1, 7, 8, 128)] == [17, 23, 24, 31]
    behind = distance_buckets(32, 128, bidirectional=False)
    at = dict(zip(range(-128, 129), behind.tolist(), strict=True))
    assert [at[d] for d in (1, 50, 128, 0, -1, -15, -16, -128)] == [0, 0, 0, 0, 1, 15, 16, 31]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("count", "farthest"), [(32, 128), (6, 17), (10, 100), (64, 256)])
def test_buckets_by_formula(causal, count, farthest):
    found = distance_buckets(count, farthest, bidirectional=not causal)
    distances = range(-farthest, farthest + 1)
    expected = [formulas.bucket(d, count, farthest, causal) for d in distances]
    # Where the logarithm is whole but for rounding, float32 decides, as in T5's code.
    assert np.count_nonzero(found != expected) <= 2
    assert np.abs(found - expected).max() <= 1


def test_diagonals_are_spread_and_summed():
    values, x = numbers(3, 11), numbers(3, 5, 7, seed=1)
    spread = np.array([[v[4 - i : 11 - i] for i in range(5)] for v in values])
    np.testing.assert_allclose(to_numpy(spread_diagonals(tensor(values), 5, 7)), spread, 1e-6)
    summed = [[np.trace(m, d) for d in range(-4, 7)] for m in x]
    np.testing.assert_allclose(to_numpy(sum_diagonals(tensor(x))), summed, 1e-4, 1e-6)
    one = numbers(3, 7)
    np.testing.assert_allclose(to_numpy(spread_diagonals(tensor(one), 1, 7))[:, 0], one, 1e-6)


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


@pytest.mark.parametrize("way", ["plain", "blocked"])
@pytest.mark.parametrize("options", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("kind", ["alibi", "buckets"])
def test_biases_by_both_ways(kind, options, way):
    """Output and gradients, the table's too, against the reference with the whole bias."""
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
    seen = reference.visibility(
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
        visibility = AttentionMask(**described)
        return (api.attend(query, key, value, visibility, biases=[made], implementation=way),)

    with block_size(5):
        (output,), found = value_and_gradients(
            ours,
            {name: tensor(x) for name, x in arrays.items()},
            tensor(upstream),
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
        visibility = AttentionMask(causal=True, offset=offset)
        queries = visibility.positions_of_queries(Span(0, rows.stop - rows.start))
        keys = visibility.positions_of_keys(Span(0, 11))
        rotated, _ = position.rotate(query[:, rows], key, queries, keys)
        _, keys = position.rotate(query, key, keys, keys)
        bias = position.block_bias(N, causal=True)
        return api.attend(rotated, keys, value, visibility, biases=[bias])

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
    model.compile("sgd", "mse")
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
        lambda: RotaryPosition(scaling={"type": "dynamic", "factor": 2}),
        "`type` of.*linear.*dynamic",
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
    with pytest.raises(ValueError, match=r"table for 2 heads.*3 query heads.*of its own"):
        MultiHeadAttention(3, 4, position=shared)(x)


def test_what_is_not_a_position_is_refused():
    with pytest.raises(ValueError, match=r"`position` must be.*RotaryPosition.*'rotary'"):
        MultiHeadAttention(2, 4, position="rotary")
