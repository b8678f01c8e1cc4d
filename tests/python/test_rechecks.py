"""Layers known by a trial only: the first tokens are compared with full passes of the model."""

import contextlib
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from keras import layers, ops

import kerasattention as ka
from decoding_models import (
    FEATURES,
    VOCABULARY,
    attending,
    draw_tokens,
    embedded,
    full_pass,
    model_of,
    next_logits,
    numpy,
    with_weights,
)
from kerasattention.decoding import record
from kerasattention.decoding.graph import probe
from kerasattention.decoding.recheck import ComparedRunner
from kerasattention.decoding.sampling import Sampler

MANY = 499  # more ids than a trial has tokens


def tripled(x):
    """A layer that acts on each position separately, which only a trial can tell."""
    return layers.Lambda(lambda y: 3.0 * ops.tanh(y), name="own")(x)


def looking_back(steps):
    def mix(x):
        return x + ops.pad(x, [(0, 0), (steps, 0), (0, 0)])[:, : ops.shape(x)[1]]

    keras.utils.set_random_seed(4)
    return model_of(lambda x: attending()(layers.Lambda(mix, name="culprit")(x)))


def switched(by):
    """An id changes all that comes after it."""
    tokens = keras.Input((None,), dtype="int32")
    x = layers.Embedding(MANY, FEATURES)(tokens)

    def seen(t):
        return ops.cast(ops.cumsum(ops.cast(t == by, "int32"), axis=1) > 0, "int32")

    x = x + layers.Embedding(2, FEATURES)(layers.Lambda(seen, name="culprit")(tokens))
    return with_weights(keras.Model(tokens, layers.Dense(MANY)(attending()(x))))


def unseen_id(monkeypatch):
    """One that the trial of that Lambda does not draw."""
    drawn = set()
    draw = probe.Trial._draw_ids

    def noted(*arguments):
        ids = draw(*arguments)
        drawn.update(ids.ravel().tolist())
        return ids

    with monkeypatch.context() as patch:
        patch.setattr(probe.Trial, "_draw_ids", noted)
        ka.IncrementalDecoder(switched(MANY), 1, 8)
    assert 60 < len(drawn) < MANY
    return max(set(range(MANY)) - drawn)


NAMED = r"Layer 'culprit' was accepted.*trial.*after \d+ tokens the output for row 1 of \d+ .*Use"


def test_a_look_back_that_no_trial_sees_is_refused_at_the_prompt_that_shows_it():
    model = looking_back(80)
    prompt = draw_tokens(1, 90)
    decoder = ka.IncrementalDecoder(model, 1, 128)
    decoder.prefill(prompt)
    with pytest.raises(ValueError, match=NAMED):
        decoder.step([3])
    with pytest.raises(ValueError, match="call `reset"):
        decoder.step([3])
    with pytest.raises(ValueError, match=NAMED):
        ka.generate(model, prompt, 3)


def test_an_id_that_no_trial_draws_is_refused_where_a_prompt_has_it(monkeypatch):
    rare = unseen_id(monkeypatch)
    model = switched(rare)
    for _ in range(2):  # also with the decoder that is kept
        assert ka.generate(model, [1, 2, 3, 4], 2).shape == (6,)
        with pytest.raises(ValueError, match=NAMED):
            ka.generate(model, [1, rare, 3, 4], 20)


@contextlib.contextmanager
def counted_passes(monkeypatch):
    """The lengths of all full passes within."""
    lengths = []
    kept = ComparedRunner.compare

    def compare(self):
        full_pass = self.runner.full_pass

        def counted(inputs):
            lengths.append(inputs[self.plan.tokens].shape[1])
            return full_pass(inputs)

        self.runner.full_pass = counted
        kept(self)
        self.runner.full_pass = full_pass

    with monkeypatch.context() as patch:
        patch.setattr(ComparedRunner, "compare", compare)
        yield lengths


def greedy(model, rows, steps):
    """By a full pass of each row for each token."""
    length = max(map(len, rows)) + steps
    for _ in range(steps):
        best = next_logits(model, rows, length).argmax(axis=-1)
        rows = [np.append(row, token) for row, token in zip(rows, best, strict=True)]
    return rows


def test_a_tried_layer_costs_three_passes_and_gives_the_models_own_tokens(monkeypatch):
    keras.utils.set_random_seed(5)
    model = model_of(lambda x: attending(position=ka.RotaryPosition())(tripled(x)))
    prompts = [draw_tokens(1, n, seed=n)[0] for n in (9, 4)]
    expected = greedy(model, prompts, 19)
    with counted_passes(monkeypatch) as lengths:
        for _ in range(2):  # the second time with the decoder that is kept
            found = ka.generate(model, prompts, 19)
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    # The prompt, the prompt with the first eight tokens, and with all that was taken in.
    jax = keras.backend.backend() == "jax"
    assert lengths == ([16, 32, 32] if jax else [9, 17, 27]) * 2
    with counted_passes(monkeypatch) as lengths:
        told = []
        ka.generate(model, prompts, 3, callback=lambda new: told.append(new))
    assert len(told) == 3
    assert len(lengths) == 2


CHOOSING = {
    "likeliest": {},
    "drawn": {"temperature": 0.9, "seed": 5},
    "top-k": {"temperature": 0.9, "top_k": 9, "seed": 5},
    "nucleus": {"temperature": 0.9, "top_p": 0.8, "seed": 5},
}


@pytest.fixture(scope="module")
def looking_far_back():
    return looking_back(80)


@pytest.fixture(scope="module")
def acting_alone():
    keras.utils.set_random_seed(5)
    return model_of(lambda x: attending(position=ka.RotaryPosition())(tripled(x)))


@pytest.mark.parametrize("how", CHOOSING)
def test_a_look_back_that_only_late_tokens_show_is_refused(how, looking_far_back):
    """After the first steps: when twice as many tokens have come, or at the end."""
    with pytest.raises(ValueError, match=NAMED.replace("output", "token")):
        ka.generate(looking_far_back, [[1, 2, 3], [4, 5, 6]], 110, **CHOOSING[how])


def test_a_look_back_that_only_late_steps_show_is_refused(looking_far_back):
    decoder = ka.IncrementalDecoder(looking_far_back, 1, 150)
    decoder.prefill([1, 2, 3])
    tokens = draw_tokens(1, 140)[0]

    def take_all():
        for token in tokens:
            decoder.step([token])

    with pytest.raises(ValueError, match=NAMED):
        take_all()
    assert decoder.length < 150  # not at the end alone


@pytest.mark.parametrize("how", CHOOSING)
def test_tokens_chosen_in_a_loop_are_not_refused(how, acting_alone):
    """With padding and rows that end."""
    prompts = [draw_tokens(1, n, seed=n)[0] for n in (9, 4, 6)]
    found = ka.generate(acting_alone, prompts, 70, **CHOOSING[how])
    stop = int(found[1][60])
    again = ka.generate(acting_alone, prompts, 70, stop_token=stop, **CHOOSING[how])
    for one, other in zip(found, again, strict=True):
        end = len(other) if stop not in other[12:] else 12 + list(other[12:]).index(stop) + 1
        np.testing.assert_array_equal(one[12:end], other[12:end])


@pytest.mark.parametrize("how", CHOOSING)
def test_a_choice_may_differ_by_rounding_alone(how):
    sampler = Sampler(**CHOOSING[how])
    kind, numbers = sampler.kind, sampler.numbers()
    random = np.random.default_rng(3)
    logits = random.uniform(-2.4, 2.4, (2, 3000, 31)).astype("float32")  # (B, n, V)
    state = SimpleNamespace(
        kind=kind, numbers=numbers, position=6, finished=np.zeros(2, bool), stop=np.zeros(0, int)
    )
    plan = SimpleNamespace(
        probabilities=False,
        tokens=0,
        tried=("culprit",),
        program=SimpleNamespace(instructions=()),
    )

    def compare(change):
        """What was chosen from other logits is compared with a choice from these."""
        other = logits + (change * random.choice([-1, 1], logits.shape)).astype("float32")
        choices = record._Choices(state, np.zeros((2, 3000), int))
        at = choices.index
        choices.chosen = choices.of(ops.convert_to_tensor(other.swapaxes(0, 1)), at, None).T
        expected = choices.of(ops.convert_to_tensor(logits.swapaxes(0, 1)), at, None).T
        whole = np.pad(logits, [(0, 0), (6, 0), (0, 0)])  # (B, T, V)
        record.Record(plan, 4000, {}, None)._compare_choices(choices, ops.convert_to_tensor(whole))
        return (choices.chosen != expected).sum()

    compare(0.0)
    assert compare(2e-3) > 0  # some are near enough to be chosen instead
    with pytest.raises(ValueError, match=r"the token for row [12] of 2 is"):
        compare(0.1)


def test_known_layers_cost_no_pass():
    decoder = ka.IncrementalDecoder(model_of(lambda x: attending()(layers.ReLU()(x))), 1, 16)
    assert decoder.plan.tried == ()
    assert not isinstance(decoder._runner, ComparedRunner)


def test_features_other_inputs_probabilities_and_one_length_are_compared(monkeypatch):
    """All in one model: compiled once."""
    keras.utils.set_random_seed(6)
    memory = keras.Input((3, FEATURES), name="memory")
    tokens = keras.Input((23, FEATURES), name="tokens")
    x = attending()(tripled(tokens))
    x = x + ka.MultiHeadAttention(2, 5)(x, layers.ReLU()(memory))
    x = layers.Dense(VOCABULARY, activation="softmax", dtype="bfloat16")(x)
    model = with_weights(keras.Model([memory, tokens], x))
    random = np.random.default_rng(8)
    given = random.normal(size=(2, 3, FEATURES)).astype("float32")
    prompt = random.normal(size=(2, 23, FEATURES)).astype("float32")
    decoder = ka.IncrementalDecoder(model, 2, 23)
    with counted_passes(monkeypatch) as lengths:
        found = [decoder.prefill(prompt[:, :7], {"memory": given})]
        found += [decoder.step(prompt[:, at]) for at in (7, 8)]
    assert lengths == [23] * 3
    expected = full_pass(model, given, prompt)[:, 6:9]
    found = np.stack([numpy(ops.cast(x, "float32")) for x in found], axis=1)
    np.testing.assert_allclose(found, expected.astype("float32"), atol=2e-2)


def own_activation(x):
    return x + ops.pad(x, [(0, 0), (1, 0), (0, 0)])[:, : ops.shape(x)[1]]


class Peeking(ka.GroupQueryAttention):
    """Adds the token before, outside of the attention."""

    def call(self, query, value=None, key=None, **kwargs):
        return own_activation(super().call(query, value, key, **kwargs))


class Counting(layers.Layer):
    """Counts its calls in a variable."""

    def build(self, shape):
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False, name="count")

    def call(self, x):
        self.count.assign(self.count + 1.0)
        return x


REFUSED = {
    "an activation": lambda x: layers.Dense(FEATURES, activation=own_activation, name="culprit")(x),
    "attention": lambda x: Peeking(6, 4, 2, name="culprit")(x, use_causal_mask=True),
}


@pytest.mark.parametrize("name", REFUSED)
def test_own_code_in_a_known_layer_is_tried(name):
    with pytest.raises(ValueError, match="'culprit' cannot be decoded token by token: its result"):
        ka.IncrementalDecoder(model_of(lambda x: attending()(REFUSED[name](x))), 1, 16)


class Doubling(ka.GroupQueryAttention):
    def call(self, query, value=None, key=None, **kwargs):
        return 2.0 * super().call(query, value, key, **kwargs)


def test_own_code_that_acts_alone_is_decoded_and_compared():
    keras.utils.set_random_seed(9)

    def body(x):
        x = layers.Dense(FEATURES, activation=lambda y: 0.5 * y, name="halving")(x)
        return x + Doubling(6, 4, 2, name="doubling")(x, use_causal_mask=True)

    model, tokens = model_of(body), draw_tokens(2, 7)
    decoder = ka.IncrementalDecoder(model, 2, 16)
    assert decoder.plan.tried == ("halving", "doubling")
    found = [numpy(decoder.prefill(tokens[:, :5]))]
    found += [numpy(decoder.step(tokens[:, at])) for at in (5, 6)]
    np.testing.assert_allclose(np.stack(found, 1), full_pass(model, tokens)[:, 4:], atol=1e-3)


def test_a_layer_that_changes_a_variable_is_refused_and_has_it_back():
    tokens, x = embedded()
    layer = Counting(name="culprit")
    model = keras.Model(tokens, layers.Dense(VOCABULARY)(attending()(layer(x))))
    before = numpy(layer.count)
    with pytest.raises(
        ValueError, match=r"'culprit' cannot be .* a call changes its variable 'cou"
    ):
        ka.IncrementalDecoder(model, 1, 16)
    assert numpy(layer.count) == before
