"""A decoder that was made before the model's layers changed computes the model as it is now."""

import keras
import numpy as np
import pytest
from keras import layers

import kerasattention as ka
from backends import JIT, sampled
from decoding_models import (
    FEATURES,
    attending,
    draw_tokens,
    model_of,
    numpy,
    pass_of,
    with_weights,
)
from kerasattention.decoding.structure import Structure

PROMPT = draw_tokens(1, 3)
PADDED = np.pad(PROMPT, [(0, 0), (0, 6)])  # one length for all full passes


def built():
    keras.utils.set_random_seed(2)

    def body(x):
        x = attending(sliding_window=5, position=ka.RotaryPosition())(x)
        return layers.Lambda(lambda y: 2.0 * y)(layers.Dense(FEATURES, name="mixer")(x))

    return model_of(body)


def attention(model):
    return next(x for x in model.layers if isinstance(x, ka.GroupQueryAttention))


def enable_lora(model):
    ka.enable_lora(model, 2)
    with_weights(model, seed=11)


CHANGES = {
    "LoRA": enable_lora,
    "a window": lambda model: setattr(attention(model), "_sliding_window", 2),
    "a position": lambda model: setattr(attention(model).position, "theta", 3.0),
    "an activation": lambda model: setattr(
        model.get_layer("mixer"), "activation", keras.activations.relu
    ),
    "a Lambda": lambda model: setattr(
        next(x for x in model.layers if isinstance(x, layers.Lambda)), "function", lambda x: 0.5 * x
    ),
    "int8": lambda model: model.get_layer("mixer").quantize("int8"),
}


# With the decoder that `generate()` keeps, too, which is asked the same question.
GENERATED = sampled(CHANGES, ["LoRA", "a Lambda"])


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_the_model_counts_in_the_next_run(name):
    model = built()
    before = pass_of(model)(PADDED)[:, 2]
    decoder = ka.IncrementalDecoder(model, 1, 24)
    decoder.prefill(PROMPT)
    if name in GENERATED:
        ka.generate(model, PROMPT, 6)
    CHANGES[name](model)
    full_pass, rows = pass_of(model), PADDED.copy()
    after = full_pass(rows)[:, 2]
    assert np.abs(after - before).max() > 1e-2
    with pytest.raises(ValueError, match=r"model has been changed since `prefill\(\)`"):
        decoder.step([1])
    decoder.reset()
    np.testing.assert_allclose(numpy(decoder.prefill(PROMPT)), after, rtol=1e-3, atol=1e-3)
    if name not in GENERATED:
        return
    for at in range(3, 9):
        rows[0, at] = np.argmax(full_pass(rows)[0, at - 1])
    np.testing.assert_array_equal(ka.generate(model, PROMPT, 6), rows)


def test_a_change_of_keras_own_attention_counts_too():
    model = model_of(lambda x: x + layers.MultiHeadAttention(3, 5)(x, x, use_causal_mask=True))
    decoder = ka.IncrementalDecoder(model, 1, 24)
    decoder.prefill(PROMPT)
    model.layers[-1].enable_lora(2)  # two variables more
    with_weights(model, seed=11)
    decoder.reset()
    found = numpy(decoder.prefill(PROMPT))
    np.testing.assert_allclose(found, pass_of(model)(PROMPT)[:, -1], rtol=1e-3, atol=1e-3)


def test_training_and_saving_change_no_structure(tmp_path):
    model = built()
    structure = Structure(model)
    model.compile("sgd", "mse", jit_compile=JIT)
    model.fit(PROMPT, np.zeros((1, 3, 29)), verbose=0)
    model.predict(PROMPT, verbose=0)
    model.save_weights(tmp_path / "x.weights.h5")
    model.load_weights(tmp_path / "x.weights.h5")
    ka.attention_scores(model, PROMPT)
    keras.Model(model.input, model.layers[-1].output)
    assert structure.is_current()
    model.get_layer("mixer").trainable = False
    assert not structure.is_current()
