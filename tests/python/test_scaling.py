"""Scalings of rotary frequencies against their published formulas."""

import numpy as np
import pytest

import position_reference as formulas
from backends import tensor, to_numpy
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
