"""`generate()` and `IncrementalDecoder` go on from the positions that a prompt was given."""

import functools

import keras
import numpy as np
import pytest
from keras import layers

import kerasattention as ka
from decoding_models import FEATURES, VOCABULARY, draw_tokens, full_pass, numpy, with_weights

ROWS, PROMPT, MORE = 2, 7, 5
# The largest is not the last: the text goes on behind an image, as in Qwen2-VL.
PLACES = np.array([[0, 3, 4, 9, 5, 6, 8], [2, 1, 0, 3, 4, 11, 6]])
TIMES = PLACES * 0.37 + 0.2
# Time, row and column.
AXES = np.stack([PLACES, [[0, 1, 2, 13, 1, 2, 3]] * 2, [[4, 0, 1, 2, 3, 0, 1]] * 2], axis=-1)
ROTARY = {"position": ka.RotaryPosition(50.0)}
SECTIONS = {"position": ka.RotaryPosition(50.0, sections=(1, 1, 1))}
ALIBI = {"position": ka.AlibiPosition(), "sliding_window": 4}


class Own(layers.Layer):
    """Of a user: its model is compared with full passes."""

    def call(self, x):
        return x * 1.1


def model_of(options, dtype="int32", axes=(), *arguments, own=False):
    given = {"positions": keras.Input((None, *axes), dtype=dtype, name="places")}
    given |= {name: keras.Input((None,), dtype="int32", name=name) for name in arguments}
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    x = layers.Embedding(VOCABULARY, FEATURES)(tokens)
    x = x + ka.GroupQueryAttention(6, 4, 2, use_causal_mask=True, **options)(x, **given)
    x = Own()(x) if own else x
    return with_weights(keras.Model([*given.values(), tokens], layers.Dense(VOCABULARY)(x)))


def continued(at, step, count=MORE):
    """The positions of a prompt, and behind the largest on any axis those of new tokens."""
    largest = at.reshape(len(at), -1).max(axis=1)
    later = largest[:, None] + step * np.arange(1, count + 1)
    if at.ndim == 3:
        later = np.repeat(later[:, :, None], at.shape[2], axis=2)
    return np.concatenate([at, later], axis=1)


def assert_continues(model, at, step, made, *others):
    """Each new token is the likeliest of a full pass over positions and tokens."""
    dtype = model.inputs[0].dtype
    full = full_pass(model, continued(at, step).astype(dtype), *others, made.astype("int32"))
    np.testing.assert_array_equal(made[:, PROMPT:], full[:, PROMPT - 1 : -1].argmax(axis=-1))


@pytest.mark.parametrize(
    ("options", "dtype", "at", "step", "own"),
    [
        (ROTARY, "int32", PLACES, None, True),
        (ALIBI, "int32", PLACES, 3, False),
        (ROTARY, "float32", TIMES, 0.6, False),
        (SECTIONS, "int32", AXES, None, False),
        (SECTIONS, "int32", AXES, None, True),
    ],
)
def test_generation_is_that_of_full_passes(options, dtype, at, step, own):
    model = model_of(options, dtype, at.shape[2:], own=own)
    tokens = draw_tokens(ROWS, PROMPT)
    made = ka.generate(model, tokens, MORE, inputs=at, position_step=step)
    np.testing.assert_array_equal(made[:, :PROMPT], tokens)
    assert_continues(model, at, step or 1, made)
    # The positions make a difference, and nothing of them is left for the next call.
    other = ka.generate(model, tokens, MORE, inputs=at * 2, position_step=step)
    assert_continues(model, at * 2, step or 1, other)
    if own and at.ndim == 2:
        copies = ka.generate(model, tokens, MORE, inputs=[at], num_return_sequences=2)
        np.testing.assert_array_equal(copies[::2], made)


def test_more_tokens_than_one_loop_makes():
    model = model_of(ROTARY)
    made = ka.generate(model, draw_tokens(ROWS, PROMPT), 70, inputs=PLACES)
    at = continued(PLACES, 1, 70).astype("int32")
    full = full_pass(model, at, made.astype("int32"))
    np.testing.assert_array_equal(made[:, PROMPT:], full[:, PROMPT - 1 : -1].argmax(axis=-1))


def test_the_last_segment_says_where_its_tokens_go_on():
    model = model_of(SECTIONS, "int32", (3,), "segment_ids")
    segments = np.array([[1, 1, 1, 1, 2, 2, 2], [1, 1, 1, 1, 1, 1, 2]])
    tokens = draw_tokens(ROWS, PROMPT)
    made = ka.generate(model, tokens, MORE, inputs={"places": AXES, "segment_ids": segments})
    last = np.where((segments == segments[:, -1:])[:, :, None], AXES, 0)
    at = np.concatenate([AXES, continued(last, 1)[:, PROMPT:]], axis=1).astype("int32")
    ids = np.concatenate([segments, np.repeat(segments[:, -1:], MORE, axis=1)], axis=1)
    full = full_pass(model, at, ids, made.astype("int32"))
    np.testing.assert_array_equal(made[:, PROMPT:], full[:, PROMPT - 1 : -1].argmax(axis=-1))


@pytest.mark.parametrize("axes", [(), (3,)])
def test_prompts_of_different_lengths(axes):
    """Each is continued as by itself; the padding on the left has no position."""
    at = AXES if axes else PLACES
    model = model_of(SECTIONS if axes else ROTARY, "int32", axes, own=bool(axes))
    tokens, lengths = draw_tokens(ROWS, PROMPT), [4, PROMPT]
    prompts = [row[:n] for row, n in zip(tokens, lengths, strict=True)]
    padded = [
        np.pad(row[:n], ((PROMPT - n, 0), *[(0, 0)] * len(axes)), constant_values=99)
        for row, n in zip(at, lengths, strict=True)
    ]
    made = ka.generate(model, prompts, MORE, inputs=np.stack(padded))
    for n, places, row in zip(lengths, at, made, strict=True):
        # What stands behind is seen by no token before it.
        places = continued(places[None, :n], 1, PROMPT + MORE - n)
        full = full_pass(model, places.astype("int32"), np.resize(row, (1, PROMPT + MORE)))[0]
        np.testing.assert_array_equal(row[n:], full[n - 1 : n + MORE - 1].argmax(axis=-1))


@pytest.mark.parametrize("axes", [(), (3,)])
def test_steps_without_positions_and_with_them(axes):
    at = AXES if axes else PLACES
    model = model_of(SECTIONS if axes else ROTARY, "int32", axes)
    tokens = draw_tokens(ROWS, PROMPT + 4)
    places = continued(at, 1, 4).astype("int32")
    places[:, PROMPT + 1 :] += 5
    if axes:  # not compared: a smaller one is no error
        places[:, PROMPT + 1, 0] = 2
    expected = full_pass(model, places, tokens)
    decoder = ka.IncrementalDecoder(model, ROWS, PROMPT + 4)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    close(numpy(decoder.prefill(tokens[:, :PROMPT], at)), expected[:, PROMPT - 1])
    close(numpy(decoder.step(tokens[:, PROMPT])), expected[:, PROMPT])
    given = {"places": places[:, PROMPT + 1]}
    close(numpy(decoder.step(tokens[:, PROMPT + 1], given)), expected[:, PROMPT + 1])
    close(numpy(decoder.step(tokens[:, PROMPT + 2 :])), expected[:, PROMPT + 3])


def test_what_is_refused():
    tokens = draw_tokens(ROWS, PROMPT)
    real, counted, wide = (
        model_of(ROTARY, "float32"),
        model_of(ROTARY),
        model_of(SECTIONS, "int32", (3,)),
    )

    def refused(message, model, at, count=3, **options):
        with pytest.raises(ValueError, match=message):
            ka.generate(model, tokens, count, inputs=at, **options)

    refused(r"\['places'\] .*real numbers. Set `position_step`", real, TIMES)
    refused(r"`position_step` must be a number above 0. Rec.*-1", real, TIMES, position_step=-1)
    refused("a number above 0.*nan", real, TIMES, position_step=float("nan"))
    refused(r"whole number above 0.*\['places'\].*0.5", counted, PLACES, position_step=0.5)
    refused("not in order in float32. Subtract", real, TIMES + 1e8, position_step=0.5)
    refused("not in order in int32", counted, PLACES + 2**31 - 13, count=5)
    refused(r"3 numbers for each token, of shape \(2, 7, 3\)", wide, PLACES)
    refused(r"a number for each token, of shape \(2, 7\)", counted, AXES)
    plain = keras.Input((None,), dtype="int32")
    x = layers.Embedding(VOCABULARY, FEATURES)(plain)
    plain = keras.Model(plain, ka.MultiHeadAttention(2, 6, use_causal_mask=True)(x))
    refused("`position_step` must be left out", plain, None, position_step=1)
