"""Dropout of attention weights: which ones, how many, how independent, and by which seed."""

import keras
import numpy as np
import pytest

import reference
from backends import run, tensor, to_numpy
from kerasattention import scaled_dot_product_attention
from kerasattention.attend.dropout import draw_seed, keep_block
from kerasattention.attend.tensors import Span
from problems import SMALL_BLOCK, block_size

SEED = (123456789, 987654321)


def kept(rate=0.5, shape=(2, 3, 5, 31), seed=SEED, rows=None, columns=None):
    B, N, T, S = shape
    rows, columns = rows or Span(0, T), columns or Span(0, S)
    found = run(
        lambda words: keep_block(words, Span(0, B), Span(0, N), rows, columns, rate),
        tensor(np.array(seed), "int32"),
    )
    return to_numpy(found)


def test_the_pattern_is_the_same_everywhere():
    """Written down once: no backend, version or machine may give another."""
    bits = kept()[1, 2].astype(int)
    assert ["".join(map(str, row)) for row in bits] == EXPECTED_BITS


EXPECTED_BITS = [
    "0010001101011010010101100000010",
    "1010110001111111000000111111100",
    "0101111110000011001100111010000",
    "0010000110001000100111011110001",
    "0110101000111011110111111010010",
]


def test_the_pattern_is_that_of_the_formula():
    for rate in (0.1, 0.5, 0.9):
        shape = (2, 3, 5, 31)
        np.testing.assert_array_equal(kept(rate), reference.kept_weights(SEED, shape, rate))


def test_blocks_are_cut_from_one_pattern():
    whole = kept(shape=(2, 3, 13, 17))
    part = kept(shape=(2, 3, 13, 17), rows=Span(4, 7), columns=Span(11, 5))
    np.testing.assert_array_equal(part, whole[:, :, 4:11, 11:16])


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.8])
def test_the_share_dropped_is_the_rate(rate):
    """Over all, and over every single row, column, head and sample."""
    keep = kept(rate, shape=(5, 7, 67, 71))
    spread = (rate * (1 - rate)) ** 0.5
    for axes in [(0, 1, 2, 3), (1, 2, 3), (0, 2, 3), (0, 1, 3), (0, 1, 2)]:
        count = np.prod([keep.shape[axis] for axis in axes])
        # 4.5 standard deviations: one in 10^5 for each of the 150 means looked at.
        assert np.abs(1 - keep.mean(axis=axes) - rate).max() < 4.5 * spread / count**0.5


def test_weights_are_dropped_independently():
    """No correlation with a shifted, flipped or transposed pattern, nor with another seed's."""
    keep = kept(0.5, shape=(5, 7, 61, 61)) - 0.5
    others = {
        "next sample": np.roll(keep, 1, axis=0),
        "next head": np.roll(keep, 1, axis=1),
        "next query": np.roll(keep, 1, axis=2),
        "next key": np.roll(keep, 1, axis=3),
        "diagonal": np.roll(keep, (1, 1), axis=(2, 3)),
        "transposed": keep.swapaxes(2, 3) * (1 - np.eye(61)),
        "first word + 1": kept(0.5, keep.shape, (SEED[0] + 1, SEED[1])) - 0.5,
        "second word + 1": kept(0.5, keep.shape, (SEED[0], SEED[1] + 1)) - 0.5,
        "words exchanged": kept(0.5, keep.shape, SEED[::-1]) - 0.5,
    }
    for name, other in others.items():
        correlation = (keep * other).mean() / 0.25
        assert abs(correlation) < 4.5 / keep.size**0.5, name
    # Four corners of a rectangle: a sum of row and column hashes would be far from 0.
    corners = keep * np.roll(keep, 1, 2) * np.roll(keep, 1, 3) * np.roll(keep, (1, 1), (2, 3))
    assert abs(corners.mean() * 16) < 4.5 / keep.size**0.5


def attend(inputs, **options):
    return to_numpy(
        run(lambda *x: scaled_dot_product_attention(*x, dropout=0.4, **options), *inputs)
    )


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(21)
    return [tensor(rng.normal(size=(2, 13, heads, 7))) for heads in (6, 3, 3)]


def test_one_seed_one_result(inputs):
    """Bit for bit in the same kernel, to rounding in another."""
    first = attend(inputs, seed=5, implementation="plain")
    np.testing.assert_array_equal(first, attend(inputs, seed=5, implementation="plain"))
    assert np.abs(first - attend(inputs, seed=6, implementation="plain")).max() > 0.1
    with block_size(SMALL_BLOCK):
        blocked = attend(inputs, seed=5, implementation="blocked")
    np.testing.assert_allclose(blocked, first, atol=5e-6)


def test_the_output_is_right_on_average(inputs):
    without = to_numpy(scaled_dot_product_attention(*inputs))
    outputs = [
        to_numpy(scaled_dot_product_attention(*inputs, dropout=0.4, seed=seed))
        for seed in range(67)
    ]
    spread = np.std(outputs, axis=0) / len(outputs) ** 0.5
    assert np.abs(np.mean(outputs, axis=0) - without).max() < 4.5 * spread.max()


def test_no_two_calls_drop_the_same(inputs):
    """Without a seed, and with a generator, which then stands where a like one would."""

    def drawn(seed):
        return to_numpy(scaled_dot_product_attention(*inputs, dropout=0.4, seed=seed))

    assert np.abs(drawn(None) - drawn(None)).max() > 0.1
    # Its numbers are unsigned on JAX and 64 bits wide on TensorFlow.
    generator = keras.random.SeedGenerator(3)
    first, second = drawn(generator), drawn(generator)
    assert np.abs(first - second).max() > 0.1
    twin = keras.random.SeedGenerator(3)
    np.testing.assert_array_equal(first, drawn(twin))
    np.testing.assert_array_equal(second, drawn(twin))


def test_keras_set_random_seed_repeats_unseeded_calls(inputs):
    found = []
    for _ in range(2):
        keras.utils.set_random_seed(8)
        found.append(to_numpy(scaled_dot_product_attention(*inputs, dropout=0.4)))
    np.testing.assert_array_equal(*found)


def test_a_rate_of_zero_touches_no_generator(inputs):
    generator = keras.random.SeedGenerator(3)
    before = to_numpy(generator.state.value)
    scaled_dot_product_attention(*inputs, dropout=0.0, seed=generator)
    np.testing.assert_array_equal(to_numpy(generator.state.value), before)


def test_seeds_of_any_size_become_two_words():
    for seed in (0, 5, 2**31 + 3, 2**40, -1):
        words = to_numpy(draw_seed(seed))
        assert words.shape == (2,)
        assert words.dtype == np.int32
