"""Rotary positions of several axes: sections against complex numbers, in layers and decoders."""

import keras
import numpy as np
import pytest

import kerasattention as ka
import layer_reference
import option_checks as checks
import position_reference as formulas
import reference
from backends import JIT, compiled, predicted, run, sampled, tensor, to_numpy
from kerasattention import RotaryPosition
from layer_twins import randomize, weights_of
from position_reference import B, K, N, T, numbers
from problems import block_size

THETA, D = 50.0, 5
PLACES = np.random.default_rng(1).integers(0, 40, (B, T, 3))

# The sections, the axis of each pair and the frequency of each pair.
LADDER = formulas.frequencies(THETA, 14)
SECTIONS = {
    "bands": ((2, 4, 1), [0, 0, 1, 1, 1, 1, 2], LADDER),
    "interleaved": (
        {"type": "interleaved", "sizes": (3, 2, 2)},
        [0, 1, 2, 0, 1, 2, 0],
        LADDER,
    ),
    "interleaved, first the rest": (
        {"type": "interleaved", "sizes": (5, 1, 1)},
        [0, 1, 2, 0, 0, 0, 0],
        LADDER,
    ),
    "axial": (
        {"type": "axial", "sizes": (2, 4, 1)},
        [0, 0, 1, 1, 1, 1, 2],
        formulas.frequencies(THETA, 4)
        + formulas.frequencies(THETA, 8)
        + formulas.frequencies(THETA, 2),
    ),
}


def position(name, **options):
    return RotaryPosition(THETA, sections=SECTIONS[name][0], **options)


@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize("name", SECTIONS)
def test_each_pair_turns_by_its_axis(name, layout):
    _, axes, frequencies = SECTIONS[name]
    query, key = numbers(B, T, N, 17), numbers(B, T, K, 17, seed=1)
    made = position(name, layout=layout, fraction=14 / 17)
    places = tensor(PLACES)
    found = run(lambda q, k, at: made.rotate(q, k, at, at), tensor(query), tensor(key), places)
    for x, given in zip(found, (query, key), strict=True):
        wanted = formulas.rotate_axes(given, PLACES, frequencies, axes, layout)
        np.testing.assert_allclose(to_numpy(x), wanted, atol=2e-5)


def test_one_position_of_a_token_stands_for_all_axes():
    """As text does in a model of images."""
    query = tensor(numbers(B, T, N, 14))
    at = PLACES[..., 0]
    expected, _ = RotaryPosition(THETA).rotate(query, query, *[tensor(at)] * 2)
    for name in ("bands", "interleaved"):
        for given in (at, np.repeat(at[..., None], 3, axis=-1)):
            found, _ = position(name).rotate(query, query, *[tensor(given)] * 2)
            np.testing.assert_allclose(to_numpy(found), to_numpy(expected), atol=1e-6)


# In layers --------------------------------------------------------------------------------------


def grouped(**options):
    return ka.GroupQueryAttention(14, N, K, **options)


def expected_output(layer, x, places, frequencies, axes, **seen):
    """Masks compare the order of the tokens."""
    weights = weights_of(layer)
    query, key, value = (
        layer_reference.project(weights, name, x) for name in ("query", "key", "value")
    )
    query, key = (
        formulas.rotate_axes(heads, places, frequencies, axes, "half") for heads in (query, key)
    )
    samples, length = x.shape[:2]
    heads, _ = reference.attention(
        query, key, value, seen=reference.visible(samples, N, length, length, **seen)
    )
    output = np.tensordot(heads, weights["attention_output/kernel"].astype(float), 2)
    return output + weights["attention_output/bias"]


@pytest.mark.parametrize("flash", [False, True])
@pytest.mark.parametrize("name", sampled(SECTIONS, 2))
def test_layers_rotate_by_axes_and_mask_by_order(name, flash):
    _, axes, frequencies = SECTIONS[name]
    layer = grouped(
        position=position(name), use_causal_mask=True, sliding_window=5, flash_attention=flash
    )
    layer.build((B, T, D))
    randomize(layer)
    x = numbers(B, T, D, seed=2).astype("float32")
    expected = expected_output(layer, x, PLACES, frequencies, axes, causal=True, window=5)
    with block_size(4):
        found = to_numpy(compiled(lambda x, at: layer(x, positions=at))(tensor(x), tensor(PLACES)))
        real = to_numpy(layer(tensor(x), positions=PLACES / 1.0))
        one = to_numpy(layer(tensor(x), positions=PLACES[:1]))
    np.testing.assert_allclose(found, expected, atol=2e-5)
    np.testing.assert_allclose(real, expected, atol=2e-5)
    expected = expected_output(layer, x, PLACES[:1], frequencies, axes, causal=True, window=5)
    np.testing.assert_allclose(one, expected, atol=2e-5)


def test_real_positions_of_several_axes():
    _, axes, frequencies = SECTIONS["axial"]
    layer = grouped(position=position("axial"))
    layer.build((B, T, D))
    randomize(layer)
    x = numbers(B, T, D, seed=2).astype("float32")
    places = PLACES / 8.0
    expected = expected_output(layer, x, places, frequencies, axes)
    np.testing.assert_allclose(to_numpy(layer(tensor(x), positions=places)), expected, atol=2e-5)


def test_images_have_the_indices_of_rows_and_columns():
    """Attention over both axes of an image needs no positions."""
    axes = [0, 0, 0, 1, 1, 1, 1]
    frequencies = formulas.frequencies(THETA, 6) + formulas.frequencies(THETA, 8)
    rotary = RotaryPosition(THETA, sections={"type": "axial", "sizes": (3, 4)})
    layer = ka.MultiHeadAttention(N, 14, position=rotary)
    images = numbers(2, 3, 5, D, seed=2).astype("float32")
    layer.build(images.shape)
    randomize(layer)
    grid = np.stack(np.meshgrid(np.arange(3), np.arange(5), indexing="ij"), -1).reshape(1, 15, 2)
    flat = images.reshape(2, 15, D)
    expected = expected_output(layer, flat, grid, frequencies, axes).reshape(images.shape)
    found = to_numpy(compiled(lambda x: layer(x))(tensor(images)))
    np.testing.assert_allclose(found, expected, atol=2e-5)
    given = to_numpy(layer(tensor(images), positions=grid))
    np.testing.assert_allclose(given, expected, atol=2e-5)
    inputs = keras.Input((None, None, D))
    model = keras.Model(inputs, layer(inputs))
    np.testing.assert_allclose(predicted(model, images), expected, atol=2e-5)


def test_models_with_positions_train_and_come_back(tmp_path):
    inputs, places = keras.Input((None, D)), keras.Input((None, 3), dtype="int32")
    layer = grouped(position=position("interleaved"), use_causal_mask=True)
    model = keras.Model([inputs, places], layer(inputs, positions=places))
    config = layer.get_config()
    assert ka.GroupQueryAttention.from_config(config).get_config() == config
    x, at = numbers(B, T, D).astype("float32"), PLACES.astype("int32")
    model.compile("sgd", "mse", jit_compile=JIT)
    before = model.evaluate([x, at], x, verbose=0)
    model.fit([x, at], x, epochs=2, verbose=0)
    assert model.evaluate([x, at], x, verbose=0) < before
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(predicted(loaded, x, at), predicted(model, x, at), atol=1e-6)


@pytest.mark.parametrize("name", ["bands", "interleaved"])
def test_text_is_decoded_as_in_full_passes(name):
    """Without `positions` all axes have the index of the token, and so has the cache."""
    sections = (1, 1) if name == "bands" else {"type": "interleaved", "sizes": (1, 1)}
    checks.check_decoding(position=RotaryPosition(THETA, sections=sections))


# Errors -----------------------------------------------------------------------------------------

WRONG = {
    "one": ((7,), "`sections` must be 2 to 16 whole numbers above 0.*Received: sections=\\(7,\\)"),
    "zero": ((3, 0), "`sections` must be.*whole numbers above 0"),
    "real": ((3.5, 1), "`sections` must be.*3.5"),
    "number": (3, "`sections` must be.*sections=3"),
    "type": ({"type": "both", "sizes": (1, 1)}, "a `type` of .*interleaved.*'both'"),
    "entry": ({"sizes": (1, 1), "axes": 2}, "`sections` as a dictionary.*axes"),
    "no sizes": ({"type": "axial"}, "`sections` must be"),
    "turns": (
        {"type": "interleaved", "sizes": (1, 3, 1)},
        r"turns of the axes.*\[1, 3, 1\], of which the pairs would be \[2, 2, 1\]",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_sections_are_refused(name):
    sections, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        RotaryPosition(sections=sections)


def test_sections_fit_the_head_and_the_scaling():
    with pytest.raises(ValueError, match=r"sum of `sections` must be 4.*\[2, 1\]"):
        grouped(position=RotaryPosition(sections=(2, 1), fraction=8 / 14)).build((B, T, D))
    with pytest.raises(ValueError, match=r'"axial" have no `scaling`.*linear'):
        position("axial", scaling={"type": "linear", "factor": 2})
    scaled = position("bands", scaling={"type": "linear", "factor": 2})
    query = tensor(numbers(B, T, N, 14))
    found, _ = scaled.rotate(query, query, *[tensor(PLACES)] * 2)
    expected, _ = position("bands").rotate(query, query, *[tensor(PLACES / 2)] * 2)
    np.testing.assert_allclose(to_numpy(found), to_numpy(expected), atol=1e-6)
