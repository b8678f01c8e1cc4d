"""Loops compiled by XLA on TensorFlow: the same tokens as those of TensorFlow's operations."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import kerasattention as ka
from backends import BACKEND
from decoding_models import attending, draw_tokens, model_of
from kerasattention.decoding.decoder import IncrementalDecoder
from kerasattention.decoding.pool import borrowed_decoder

pytestmark = pytest.mark.skipif(BACKEND != "tensorflow", reason="XLA is asked for on TensorFlow")

# All in one model, of which a loop is compiled for each kind of call.
OPTIONS = [
    {"sliding_window": 3, "attention_sink": True},
    {"use_gate": True, "qk_norm": True, "position": ka.RotaryPosition()},
    {"use_bias": False},
]
CALLS = {
    "greedy": {},
    "drawn": {"temperature": 0.8, "top_k": 7, "top_p": 0.9, "seed": 11},
    "stopped": {"stop_token": list(range(0, 29, 2))},
}
RAGGED = [[3, 5, 7, 2], [11], [13, 17]]


def compiles(model, rows, length):
    with borrowed_decoder(model, rows, length) as decoder:
        runner = decoder._runner
        return getattr(runner, "runner", runner)._compiles  # behind one that compares


@pytest.fixture(scope="module")
def twins():
    """Two models of the same weights; the loops of the second are compiled by XLA."""

    def body(x):
        for options in OPTIONS:
            x = attending(**options)(x)
        return x

    model = model_of(body)
    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    return model, twin


@pytest.mark.parametrize(
    ("call", "prompts"),
    [("greedy", draw_tokens(length=5)), ("drawn", RAGGED), ("stopped", RAGGED)],
    ids=CALLS,
)
def test_compiled_loops_make_the_same_tokens(call, prompts, twins, monkeypatch):
    from kerasattention.decoding.backends import tensorflow

    model, twin = twins
    expected = ka.generate(model, prompts, 6, **CALLS[call])
    assert not compiles(model, 3, 11)
    monkeypatch.setattr(tensorflow, "XLA_PARAMETERS", 0)
    made = ka.generate(twin, prompts, 6, **CALLS[call])
    assert compiles(twin, 3, 11)
    for a, b in zip(made, expected, strict=True):
        np.testing.assert_array_equal(a, b)


class Written(layers.Layer):
    """An operation that XLA does not know."""

    def call(self, x):
        import tensorflow as tf

        return x + 0.0 * tf.strings.to_number(tf.as_string(ops.cast(x, "int32")))


def test_what_xla_does_not_know_runs_without_it(monkeypatch):
    from kerasattention.decoding.backends import tensorflow

    def body(x):
        return Written()(attending()(x))

    tokens = draw_tokens(length=5)
    first = model_of(body)
    expected = ka.generate(first, tokens, 20)
    monkeypatch.setattr(tensorflow, "XLA_PARAMETERS", 0)
    model = model_of(body)
    model.set_weights(first.get_weights())
    np.testing.assert_array_equal(ka.generate(model, tokens, 20), expected)
    assert not compiles(model, 3, 25)


def tied(**options):
    """A language model whose embedding gives the logits too, and that embedding."""
    keras.utils.set_random_seed(5)
    embedding = layers.ReversibleEmbedding(29, 12, **options)
    tokens = keras.Input((None,), dtype="int32")
    features = attending(position=ka.RotaryPosition())(embedding(tokens))
    return keras.Model(tokens, embedding(features, reverse=True)), embedding


TIED = {
    "plain": ({}, None, 1),
    "of its own": ({"tie_weights": False}, None, 0),
    "capped": ({"logit_soft_cap": 2.0}, None, 0),
    # Of the projections too, which then are no plain products.
    "int8": ({}, lambda model, layer: model.quantize("int8"), 0),
    "lora": ({}, lambda model, layer: (ka.enable_lora(model, 2), layer.enable_lora(2)), 0),
}


@pytest.mark.parametrize("name", TIED)
def test_tied_embeddings_are_transposed_once(name, monkeypatch):
    from kerasattention.decoding.backends import products_tensorflow, tensorflow
    from kerasattention.decoding.backends.products import linear_layers

    options, change, replaced = TIED[name]

    def made():
        model, embedding = tied(**options)
        if change is not None:
            change(model, embedding)
        for weight in model.trainable_weights:  # factors of zeros change nothing
            weight.assign(weight + 0.1 * keras.random.normal(weight.shape, seed=7))
        return model, embedding

    prompts = np.array([[3, 5, 7, 2], [11, 1, 4, 8], [13, 17, 9, 9]])
    expected = ka.generate(made()[0], prompts, 6)
    monkeypatch.setattr(tensorflow, "XLA_PARAMETERS", 0)
    monkeypatch.setattr(products_tensorflow, "ENOUGH_STEPS", 1)
    model, embedding = made()
    np.testing.assert_array_equal(ka.generate(model, prompts, 6), expected)
    assert compiles(model, 3, 10)
    products = products_tensorflow.loop_products(linear_layers(model), rows=3, steps=6)
    assert (id(embedding) in products) == replaced


def test_several_decoders_are_not_taken_for_one_that_is_traced_again(caplog):
    model = model_of(attending())
    for _ in range(8):
        decoder = IncrementalDecoder(model, 1, 8)
        decoder.prefill([[3, 5]])
        decoder.step([7])
    assert "retracing" not in caplog.text
