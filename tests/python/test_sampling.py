"""Which tokens are generated: choosing one against NumPy, and whole generations."""

import functools

import keras
import numpy as np
import pytest
from keras import layers, ops

import kerasattention as ka
from decoding_models import VOCABULARY, attending, draw_tokens, embedded, model_of, next_logits
from decoding_models import with_weights as weighted
from kerasattention.decoding.sampling import Sampler, choose_tokens, gumbel_noise, in_nucleus

LENGTH = 80  # one length of full passes for all of this file

# References ----------------------------------------------------------------------------


def mixed(x):
    """The last steps of MurmurHash3, on unsigned numbers of 32 bits."""
    x = np.asarray(x).astype(np.int64).astype(np.uint32)
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
        x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return (x ^ (x >> np.uint32(16))).astype(np.int64)


def noise_of(seed, position, row, size):
    """The standard Gumbel noise of a row's next token, from a hash of all that it is for."""
    stream = mixed(mixed(row + seed) + position)
    bits = mixed(mixed(stream ^ mixed(np.arange(size) + 1)) + seed)
    uniform = ((bits & (2**23 - 1)) + 0.5) / 2**23
    return -np.log(-np.log(uniform))


def filtered(logits, temperature, top_k=None, top_p=None):
    """The probabilities that are drawn from: (V) float64."""
    scaled = np.asarray(logits, "float64") / temperature
    order = np.argsort(-scaled, kind="stable")
    kept = order if top_k is None else order[:top_k]
    chances = np.exp(scaled[kept] - scaled.max())
    chances = chances / chances.sum()
    if top_p is not None:
        count = int(np.searchsorted(np.cumsum(chances), top_p)) + 1
        kept, chances = kept[:count], chances[:count] / chances[:count].sum()
    out = np.zeros(len(scaled))
    out[kept] = chances
    return out


def chosen(logits, position, row, temperature=0.0, top_k=None, top_p=None, seed=0):
    if temperature == 0.0:
        return int(np.argmax(logits))
    with np.errstate(divide="ignore"):
        chances = np.log(filtered(logits, temperature, top_k, top_p))
    return int(np.argmax(chances + noise_of(seed, position, row, len(logits))))


def continued(model, prompts, count, stop=(), **options):
    """By a full pass for each token: the rows with their continuations, ended by `stop`."""
    rows, ended = [list(map(int, row)) for row in prompts], [False] * len(prompts)
    for _ in range(count):
        logits = next_logits(model, rows, LENGTH)
        for i, row in enumerate(rows):
            if not ended[i]:
                row.append(chosen(logits[i], len(row), i, **options))
                ended[i] = row[-1] in stop
    return rows


# One token -----------------------------------------------------------------------------


def choose(logits, at, seed=0, padding=None, **options):
    sampler = Sampler(seed=seed, **options)
    logits = ops.convert_to_tensor(np.asarray(logits, "float32"))
    padding = None if padding is None else ops.convert_to_tensor(np.asarray(padding, "int32"))
    found = choose_tokens(logits, sampler.kind, sampler.numbers(), at, padding)
    assert keras.backend.standardize_dtype(found.dtype) == "int32"
    return ops.convert_to_numpy(found)


FILTERS = {
    "temperature 1": {"temperature": 1.0},
    "cold": {"temperature": 0.4},
    "hot": {"temperature": 2.5},
    "top k": {"temperature": 0.8, "top_k": 3},
    "top k of all": {"temperature": 1.0, "top_k": 11},
    "more than there are": {"temperature": 1.0, "top_k": 50},
    "top p": {"temperature": 1.3, "top_p": 0.7},
    "top p of one": {"temperature": 1.0, "top_p": 0.01},
    "top p of all": {"temperature": 1.0, "top_p": 1.0},
    "top k, then top p": {"temperature": 1.5, "top_k": 5, "top_p": 0.8},
}


@pytest.mark.parametrize("name", FILTERS)
def test_tokens_come_as_often_as_their_filtered_probability(name):
    count, size = 20_011, 11
    logits = np.random.default_rng(5).normal(size=size) * 2
    found = choose(np.tile(logits, (count, 1)), at=7, seed=3, **FILTERS[name])
    expected = filtered(logits, **FILTERS[name])
    shares = np.bincount(found, minlength=size) / count
    assert np.all(shares[expected == 0] == 0)
    assert np.all(np.abs(shares - expected) <= 5 * np.sqrt(expected * (1 - expected) / count))


@pytest.mark.parametrize("name", FILTERS)
def test_each_token_is_that_of_the_hash(name):
    rows, size = 101, 11
    logits = np.random.default_rng(6).normal(size=(rows, size)) * 2
    padding = np.random.default_rng(7).integers(0, 13, rows)
    for seed in (0, 2**31 - 1):
        found = choose(logits, at=13, seed=seed, padding=padding, **FILTERS[name])
        expected = [
            chosen(logits[i], 13 - padding[i], i, seed=seed, **FILTERS[name]) for i in range(rows)
        ]
        np.testing.assert_array_equal(found, expected)


def test_greedy_takes_the_likeliest_whatever_the_filters():
    logits = np.random.default_rng(5).normal(size=(17, 11))
    found = choose(logits, at=3, temperature=0.0, top_k=2, top_p=0.3)
    np.testing.assert_array_equal(found, logits.argmax(axis=1))


def test_the_noise_is_gumbels_and_differs_by_row_position_and_seed():
    draw = lambda seed, at: ops.convert_to_numpy(gumbel_noise(seed, at, 97, ops.arange(1009)))  # noqa: E731
    noise = draw(5, 2)
    rows = np.stack([noise_of(5, 2, row, 1009) for row in range(97)])
    np.testing.assert_allclose(noise, rows, rtol=2e-4, atol=2e-5)
    assert abs(noise.mean() - np.euler_gamma) < 0.02
    assert abs(noise.std() - np.pi / np.sqrt(6)) < 0.02
    for other in (draw(6, 2), draw(5, 3), noise[1:]):
        assert abs(np.corrcoef(noise[: len(other)].ravel(), other.ravel())[0, 1]) < 0.02


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999])
def test_the_nucleus_is_that_of_sorting(top_p):
    logits = np.random.default_rng(8).normal(size=(53, 211)).astype("float32") * 4
    found = ops.convert_to_numpy(in_nucleus(ops.convert_to_tensor(logits), top_p))
    for row, kept in zip(logits, found, strict=True):
        np.testing.assert_array_equal(kept, filtered(row, 1.0, None, top_p) > 0)


# Whole generations ---------------------------------------------------------------------


@functools.cache
def model():
    keras.utils.set_random_seed(1)
    # Logits far apart, so that rounding does not decide.
    made = model_of(attending(position=ka.RotaryPosition()))
    made.layers[-1].kernel.assign(made.layers[-1].kernel * 3)
    return made


DRAWN = {"temperature": 1.2, "top_k": 7, "top_p": 0.9, "seed": 5}
SAMPLERS = {
    "greedy": {},
    "temperature": {"temperature": 1.5, "seed": 11},
    "top k and top p": DRAWN,
}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_matrix_is_continued_as_by_full_passes(sampler):
    prompts = draw_tokens(3, 4)
    found = ka.generate(model(), prompts, 9, **SAMPLERS[sampler])
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, continued(model(), prompts, 9, **SAMPLERS[sampler]))


def test_a_long_run_crosses_the_chunks_of_the_loop():
    prompts = draw_tokens(3, 4)
    found = ka.generate(model(), prompts, 70, **DRAWN)
    np.testing.assert_array_equal(found, continued(model(), prompts, 70, **DRAWN))
    np.testing.assert_array_equal(ka.generate(model(), prompts, 5, **DRAWN), found[:, :9])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_prompts_of_different_length_are_continued_as_if_alone(sampler):
    tokens = draw_tokens(3, 6)
    prompts = [tokens[0, :2], tokens[1], tokens[2, :1]]
    found = ka.generate(model(), prompts, 9, **SAMPLERS[sampler])
    assert isinstance(found, list)
    for row, expected in zip(
        found, continued(model(), prompts, 9, **SAMPLERS[sampler]), strict=True
    ):
        np.testing.assert_array_equal(row, expected)


def test_a_vector_gives_a_vector():
    found = ka.generate(model(), [3, 1, 4], 5)
    assert found.shape == (8,)
    np.testing.assert_array_equal(found, continued(model(), [[3, 1, 4]], 5)[0])


def test_seeds():
    prompts = draw_tokens(3, 4)
    draw = functools.partial(ka.generate, model(), prompts, 9, temperature=1.5)
    np.testing.assert_array_equal(draw(seed=1), draw(seed=1))
    assert np.any(draw(seed=1) != draw(seed=2))
    # Equal prompts in different rows are continued differently.
    same = ka.generate(model(), np.tile(prompts[:1], (3, 1)), 9, temperature=1.5, seed=1)
    assert len({tuple(row) for row in same}) == 3
    np.testing.assert_array_equal(same[0], draw(seed=1)[0])
    # Without a seed Keras's generator draws one.
    keras.utils.set_random_seed(4)
    first, second = draw(), draw()
    assert np.any(first != second)
    keras.utils.set_random_seed(4)
    np.testing.assert_array_equal(draw(), first)


def ends(prompts, count):
    """A greedy run, and a token that ends its first row but not with the first new one."""
    whole = ka.generate(model(), prompts, count)
    new = whole[0, prompts.shape[1] :]
    late = next(token for token in new[1:] if token != new[0])
    return whole, int(late)


@pytest.mark.parametrize("several", [False, True])
def test_each_row_stops_by_itself(several):
    prompts = draw_tokens(3, 4)
    whole, late = ends(prompts, 9)
    stop = [late, int(whole[1, 5])] if several else late
    rows = continued(model(), prompts, 9, stop=np.atleast_1d(stop))
    assert min(map(len, rows)) < 13
    found = ka.generate(model(), prompts, 9, stop_token=stop)
    assert found.shape[1] == max(map(len, rows))
    for row, expected in zip(found, rows, strict=True):
        np.testing.assert_array_equal(row[: len(expected)], expected)
        assert np.all(row[len(expected) :] == expected[-1])


def test_rows_of_different_length_end_with_their_stop_token():
    tokens = draw_tokens(3, 6)
    prompts = [tokens[0, :2], tokens[1], tokens[2, :1]]
    free = ka.generate(model(), prompts, 9)
    stop = int(free[1][8])
    found = ka.generate(model(), prompts, 9, stop_token=stop)
    for row, expected in zip(found, continued(model(), prompts, 9, stop=[stop]), strict=True):
        np.testing.assert_array_equal(row, expected)


def test_a_stop_token_in_the_prompt_stops_nothing():
    prompts = draw_tokens(3, 4)
    whole = ka.generate(model(), prompts, 3)
    unused = next(t for t in range(VOCABULARY) if t not in whole[:, 4:])
    prompts[:, 0] = unused
    found = ka.generate(model(), prompts, 3, stop_token=unused)
    np.testing.assert_array_equal(found, continued(model(), prompts, 3, stop=[unused]))


def test_several_continuations_of_a_prompt_follow_each_other():
    prompts = draw_tokens(1, 4)
    found = ka.generate(model(), prompts, 9, num_return_sequences=3, **DRAWN)
    expected = ka.generate(model(), np.repeat(prompts, 3, axis=0), 9, **DRAWN)
    np.testing.assert_array_equal(found, expected)
    assert len({tuple(row) for row in found}) == 3
    assert ka.generate(model(), prompts[0], 2, num_return_sequences=3).shape == (3, 6)


def test_the_callback_sees_each_token_and_may_end_the_run():
    prompts, seen = draw_tokens(3, 4), []
    whole = ka.generate(model(), prompts, 9)

    def listen(tokens):
        seen.append(tokens)
        return len(seen) < 5

    found = ka.generate(model(), prompts, 9, callback=listen)
    np.testing.assert_array_equal(np.stack(seen, axis=1), whole[:, 4:9])
    np.testing.assert_array_equal(found, whole[:, :9])
    seen.clear()
    found = ka.generate(model(), prompts, 3, callback=lambda tokens: seen.append(tokens))
    np.testing.assert_array_equal(found, whole[:, :7])


def test_progress_is_told_how_far_it_is(capsys):
    told = []
    ka.generate(
        model(), draw_tokens(3, 4), 40, progress=lambda done, total: told.append((done, total))
    )
    assert told == [(1, 40), (17, 40), (33, 40), (40, 40)]
    ka.generate(model(), draw_tokens(3, 4), 40, progress=True)
    assert "40/40" in capsys.readouterr().out
    ka.generate(model(), draw_tokens(3, 4), 40)
    assert "40/40" not in capsys.readouterr().out


def test_a_model_that_ends_in_a_softmax_is_understood():
    logits = model()
    prompts = draw_tokens(3, 4)
    chances = keras.Model(logits.input, layers.Softmax()(logits.output))
    found = ka.generate(chances, prompts, 9, **DRAWN)
    np.testing.assert_array_equal(found, ka.generate(logits, prompts, 9, **DRAWN))


def test_other_inputs_go_with_each_continuation():
    source = keras.Input((None, 5), name="source")
    tokens, x = embedded()
    x = x + ka.GroupQueryAttention(6, 4, 2)(attending()(x), source)
    made = weighted(keras.Model([source, tokens], layers.Dense(VOCABULARY)(x)))
    sources = np.random.default_rng(1).normal(size=(2, 3, 5)).astype("float32")
    prompts = draw_tokens(2, 4)
    found = ka.generate(
        made, prompts, 5, inputs={"source": sources}, num_return_sequences=2, **DRAWN
    )
    expected = ka.generate(made, prompts.repeat(2, 0), 5, inputs=[sources.repeat(2, 0)], **DRAWN)
    np.testing.assert_array_equal(found, expected)
    other = ka.generate(made, prompts, 5, inputs=[-sources], num_return_sequences=2, **DRAWN)
    assert np.any(other != found)


def test_weights_that_changed_count_in_the_next_run():
    made, prompts = model_of(attending()), draw_tokens(3, 4)
    before = ka.generate(made, prompts, 5)
    weighted(made, seed=99)
    found = ka.generate(made, prompts, 5)
    np.testing.assert_array_equal(found, continued(made, prompts, 5))
    assert np.any(found != before)


def test_a_model_of_one_length_is_full_at_it():
    tokens = keras.Input((7,), dtype="int32")
    x = layers.Embedding(VOCABULARY, 12)(tokens)
    x = x + layers.Embedding(7, 12)(ops.arange(7))
    made = weighted(keras.Model(tokens, layers.Dense(VOCABULARY)(attending()(x))))
    assert ka.generate(made, [1, 2, 3], 4).shape == (7,)
    with pytest.raises(ValueError, match=r"at most 7.*Received: 8"):
        ka.generate(made, [1, 2, 3], 5)


def test_bad_calls_name_the_argument_and_the_value():
    generate = functools.partial(ka.generate, None)
    for options, message in (
        ({"max_new_tokens": 0}, "`max_new_tokens` must be a positive integer. Received: 0"),
        ({"temperature": -1.0}, r"`temperature` must be a number, at least 0\. Received: -1.0"),
        ({"temperature": float("nan")}, "`temperature` must be a number.*nan"),
        ({"top_k": 0}, "`top_k` must be `None` or a positive integer. Received: 0"),
        ({"top_p": 0.0}, "`top_p` must be greater than 0. Received: 0"),
        ({"top_p": 1.5}, r"`top_p` must be a number, at least 0 and at most 1\. Received: 1.5"),
        ({"seed": 1.5}, "`seed` must be `None` or an integer. Received: 1.5"),
        ({"stop_token": -2}, "`stop_token` must be `None` or token ids.*-2"),
        ({"stop_token": "end"}, "`stop_token` must be `None` or token ids.*'end'"),
        ({"num_return_sequences": 0}, "`num_return_sequences` must be a positive integer"),
        ({"tokens": [[1, 2], []]}, "at least one token"),
        ({"tokens": [1.5]}, "`tokens` must be token ids"),
        ({"tokens": [-1]}, "`tokens` must be token ids"),
        ({"tokens": np.zeros((1, 2, 3), int)}, r"a matrix \(B, T\).*\(1, 2, 3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            generate(**{"tokens": [1, 2], "max_new_tokens": 3} | options)
