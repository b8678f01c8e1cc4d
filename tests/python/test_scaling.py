"""Scalings of rotary frequencies against their published formulas."""

import keras
import numpy as np
import pytest

import kerasattention as ka
import option_checks as checks
import position_reference as formulas
from backends import compiled, double, run, tensor, to_numpy
from kerasattention import RotaryPosition

B, T, S, K, G = 2, 13, 17, 1, 3


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


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


# Frequencies by the length of the sequence ----------------------------------------------------

SHORT, LONG = [1.0, 1.5, 2.0, 1.25], [1.0, 3.0, 7.0, 9.0]
LONGROPE = {
    "type": "longrope",
    "short_factor": SHORT,
    "long_factor": LONG,
    "original_max_position_embeddings": 16,
    "max_position_embeddings": 64,
}
DYNAMIC = {"type": "dynamic", "factor": 3.0, "original_max_position_embeddings": 16}
BY_LENGTH = {"longrope": LONGROPE, "dynamic": DYNAMIC}


def frequencies_of(kind, length):
    """Of a head of 8 features, as the papers write them."""
    plain = formulas.frequencies(1e4, 8)
    if kind == "longrope":
        factors = LONG if length > 16 else SHORT
        return [x / factor for x, factor in zip(plain, factors, strict=True)]
    base = 1e4 * (3.0 * max(length, 16) / 16 - 2.0) ** (8 / 6)
    return formulas.frequencies(base, 8)


def factor_of(kind):
    return np.sqrt(1 + np.log(4) / np.log(16)) if kind == "longrope" else 1.0


LENGTHS = {
    "up to the original": np.arange(16)[None],
    "one more": np.arange(17)[None],
    "far": np.arange(13)[None] + 100,
    "each its own": np.stack([np.arange(13), np.arange(13) + 9]),
}


@pytest.mark.parametrize("kind", BY_LENGTH)
@pytest.mark.parametrize("places", LENGTHS.values(), ids=LENGTHS)
def test_frequencies_follow_the_largest_position(kind, places):
    query = numbers(*places.shape, 2, 8)
    made = RotaryPosition(scaling=BY_LENGTH[kind])
    found = run(lambda x, at: made.rotate(x, x, at, at)[0], tensor(query), tensor(places))
    for x, at, rotated in zip(query, places, to_numpy(found), strict=True):
        pairs = frequencies_of(kind, at.max() + 1)
        wanted = formulas.rotate(x[None], at, pairs, "half", factor=factor_of(kind))
        np.testing.assert_allclose(rotated, wanted[0], atol=1e-4)
    if len(places) == 1:
        found, _ = made.rotate(*[tensor(query)] * 2, *[tensor(places[0])] * 2)
        np.testing.assert_allclose(to_numpy(found), wanted, atol=1e-4)


@pytest.mark.parametrize("kind", BY_LENGTH)
def test_a_length_of_its_own_sets_them_for_all_sequences(kind):
    for length in (5, 16, 17, 60):
        made = RotaryPosition(scaling={**BY_LENGTH[kind], "length": length})
        wanted = frequencies_of(kind, length)
        np.testing.assert_allclose(made.frequencies(8).values, wanted, rtol=1e-12)
        assert made.frequencies(8).by_length is None
        assert made.longest_cached is None
    assert RotaryPosition(scaling=BY_LENGTH[kind]).longest_cached == 16


@pytest.mark.parametrize("kind", BY_LENGTH)
def test_queries_and_keys_have_the_frequencies_of_the_longer_side(kind):
    query, key = numbers(1, 5, 2, 8), numbers(1, 20, 1, 8, seed=1)
    made = RotaryPosition(scaling=BY_LENGTH[kind])
    found = made.rotate(*map(tensor, (query, key, np.arange(5), np.arange(20))))
    for x, rotated in zip((query, key), found, strict=True):
        pairs, places = frequencies_of(kind, 20), np.arange(x.shape[1])
        wanted = formulas.rotate(x, places, pairs, "half", factor=factor_of(kind))
        np.testing.assert_allclose(to_numpy(rotated), wanted, atol=1e-4)


@pytest.mark.parametrize("kind", BY_LENGTH)
def test_float64_and_axes(kind, doubles):
    query, places = numbers(2, 13, 2, 8), np.arange(13) + 20
    made = RotaryPosition(scaling=BY_LENGTH[kind], sections=(3, 1))
    at = np.stack([places, places + 7], axis=-1)[None]
    found, _ = made.rotate(*[double(query)] * 2, *[tensor(at)] * 2)
    pairs = frequencies_of(kind, 40)
    wanted = formulas.rotate_axes(query, at, pairs, [0, 0, 0, 1], "half") * factor_of(kind)
    assert keras.backend.standardize_dtype(found.dtype) == "float64"
    np.testing.assert_allclose(to_numpy(found), wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("keys", [17, 31])
def test_a_growth_that_float32_rounds_is_float64(keys, doubles):
    made = RotaryPosition(scaling={**DYNAMIC, "factor": 2.7})
    query, key = numbers(1, 17, 2, 8), numbers(1, keys, 1, 8, seed=1)
    at = [tensor(np.arange(length)) for length in (17, keys)]
    found = made.rotate(double(query), double(key), *at)
    pairs = formulas.frequencies(1e4 * (2.7 * keys / 16 - 1.7) ** (8 / 6), 8)
    for x, rotated in zip((query, key), found, strict=True):
        wanted = formulas.rotate(x, np.arange(x.shape[1]), pairs, "half")
        np.testing.assert_allclose(to_numpy(rotated), wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind", BY_LENGTH)
def test_compiled_layers_and_empty_sequences(kind):
    layer = ka.MultiHeadAttention(2, 8, position=RotaryPosition(scaling=BY_LENGTH[kind]))
    for length in (0, 13, 40):
        x = tensor(numbers(2, length, 5))
        expected = to_numpy(layer(x))
        np.testing.assert_allclose(to_numpy(compiled(layer)(x)), expected, atol=1e-5)


# Decoding --------------------------------------------------------------------------------------


def of_four(kind, **more):
    """For the head of `option_checks`, of 4 features."""
    halved = {name: x[:2] if isinstance(x, list) else x for name, x in BY_LENGTH[kind].items()}
    return RotaryPosition(theta=50.0, scaling=halved | more)


@pytest.mark.parametrize("kind", BY_LENGTH)
def test_decoding_up_to_the_original_length_is_that_of_full_passes(kind):
    checks.check_decoding(position=of_four(kind))
    model = checks.token_model({"position": of_four(kind)})
    prompt = np.array([[1, 2, 3, 4]])
    assert ka.generate(model, prompt, 12).shape == (1, 16)
    with pytest.raises(ValueError, match=r"at most 16.*layer 'attention'.*Set `length`.*: 17"):
        ka.generate(model, prompt, 13)
    with pytest.raises(ValueError, match="`max_length` must be at most 16"):
        ka.IncrementalDecoder(model, 1, 17)


@pytest.mark.parametrize("kind", BY_LENGTH)
def test_decoding_beyond_it_needs_a_length(kind):
    checks.check_decoding(position=of_four(kind, original_max_position_embeddings=4, length=40))


def test_windows_do_not_make_rows_unlimited():
    model = checks.token_model({"position": of_four("dynamic"), "sliding_window": 3})
    decoder = ka.IncrementalDecoder(model, 1, 16)
    assert not decoder.unlimited
    decoder.prefill(np.ones((1, 16), "int32"))
    with pytest.raises(ValueError, match="context is full"):
        decoder.step(np.array([1]))
    tokens = np.random.default_rng(9).integers(1, 13, (1, 16))
    decoder.reset()
    found = to_numpy(decoder.prefill(tokens[:, :10]))
    for at in range(10, 16):
        found = to_numpy(decoder.step(tokens[:, at]))
    expected = to_numpy(model(tensor(tokens)))[:, -1]
    np.testing.assert_allclose(found, expected, atol=1e-4)


# A share of all pairs ----------------------------------------------------------------------------


def test_proportional_scaling_rotates_the_first_pairs_of_the_whole_head():
    scaling = {"rope_type": "proportional", "partial_rotary_factor": 0.25, "factor": 2.0}
    found = RotaryPosition(1e6, scaling=scaling).frequencies(24).values
    plain = np.array(formulas.frequencies(1e6, 24))
    np.testing.assert_allclose(found[:3], plain[:3] / 2)
    np.testing.assert_array_equal(found[3:], 0.0)
    whole = RotaryPosition(1e6, scaling={"type": "proportional"}).frequencies(24)
    np.testing.assert_allclose(whole.values, plain)
    with pytest.raises(ValueError, match=r"`partial_rotary_factor`, and `fraction` must be 1"):
        RotaryPosition(1e6, fraction=0.5, scaling=scaling)


WRONG = {
    "factors": ({**LONGROPE, "long_factor": [1.0, -2.0]}, "`long_factor`.*positive numbers"),
    "text": ({**LONGROPE, "short_factor": "1 2"}, "`short_factor`.*'1 2'"),
    "no stretch": (
        {k: x for k, x in LONGROPE.items() if k != "max_position_embeddings"},
        "needs `max_position_embeddings`, `factor` or `attention_factor`",
    ),
    "one": ({**LONGROPE, "original_max_position_embeddings": 1}, "greater than 1.*=1"),
    "length": ({**DYNAMIC, "length": 2.5}, "`length` of `scaling` must be a whole number above 0"),
    "no original": ({"type": "dynamic", "factor": 2}, "needs `original_max_position_embeddings`"),
    "share": (
        {"type": "proportional", "partial_rotary_factor": 1.5},
        "`partial_rotary_factor` of `scaling` must be at most 1",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_parameters_are_refused(name):
    scaling, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        RotaryPosition(scaling=scaling)


def test_factors_are_one_for_each_pair():
    with pytest.raises(ValueError, match=r"`short_factor`.*each of the 5 pairs.*4 of them"):
        RotaryPosition(scaling=LONGROPE).frequencies(10)


@pytest.mark.parametrize("kind", BY_LENGTH)
def test_scalings_by_length_come_back_from_files(kind, tmp_path):
    checks.check_files(tmp_path, position=of_four(kind))
