"""Functional models of inputs whose length is not known until a batch comes."""

import keras
import numpy as np
import pytest

import kerasattention
from backends import BACKEND, sampled, to_numpy
from kerasattention.attend import registry
from kerasattention.attend.tensors import is_static
from problems import engine_options, kernel

FEATURES = 6
LENGTHS = (5, 11)

OPTIONS = {
    "window, causal": {"sliding_window": 3, "use_causal_mask": True},
    "dropout, window": {"dropout": 0.25, "seed": 7, "sliding_window": 4},
    "sink, cap, relative positions": {
        "attention_sink": True,
        "logit_soft_cap": 2.0,
        "position": kerasattention.RelativePosition(num_buckets=8, max_distance=12),
    },
}


def run_blocked(inputs, block_size):
    """Blocks of 3 queries; on TensorFlow a loop for unknown lengths, however short they are."""
    if BACKEND == "tensorflow" and not is_static(inputs.query.shape[3]):
        from kerasattention.attend.kernels.tensorflow.loop import looped_attention

        return looped_attention(inputs, 3, max_block_logits=0)
    return registry.select_kernel(inputs, "blocked", block_size=3).run(inputs, 3)


@pytest.fixture(params=["as chosen", "blocks of 3"])
def kernel_choice(request):
    """The sizes of a test are those of the plain kernel, so blocks are asked for."""
    if request.param == "as chosen":
        yield
        return
    with engine_options(implementation=kernel(run_blocked)):
        yield


def make_model(length, **options):
    """Embedded tokens, of which 0 is padding, through a layer; the mask goes along."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((length,), dtype="int32")
    x = keras.layers.Embedding(13, FEATURES, mask_zero=True)(inputs)
    x = kerasattention.GroupQueryAttention(5, 4, 2, name="attention", **options)(x)
    return keras.Model(inputs, keras.layers.Dense(2)(x))


def batch(length):
    rng = np.random.default_rng(length)
    tokens = rng.integers(1, 13, (3, length))
    tokens[1, length - 2 :] = 0
    return tokens, rng.normal(size=(3, length, 2)).astype("float32")


def train(model, length, jit_compile):
    """The losses of two steps of `fit()`, and what the model then gives."""
    tokens, targets = batch(length)
    model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=jit_compile)
    # Dropout depends on the place of a sample in the batch.
    history = model.fit(tokens, targets, batch_size=3, epochs=2, shuffle=False, verbose=0)
    return history.history["loss"], to_numpy(model(tokens))


# Each option in blocks; XLA, and the kernel of short lengths, with one each.
FITS = [(name, "auto", "blocks of 3") for name in OPTIONS]
FITS += [("window, causal", "auto", "as chosen")]
FITS = sampled(FITS, FITS[1:3])  # JAX traces known lengths only
if BACKEND == "tensorflow":
    FITS = [(name, False, kernel_choice) for name, _, kernel_choice in FITS]
    FITS += [("sink, cap, relative positions", True, "blocks of 3")]


@pytest.mark.parametrize(("name", "jit_compile", "kernel_choice"), FITS, indirect=["kernel_choice"])
def test_fit_gives_what_a_model_of_known_length_gives(name, jit_compile, kernel_choice):
    length = LENGTHS[1]
    model, known = (make_model(given, **OPTIONS[name]) for given in (None, length))
    known.set_weights(model.get_weights())
    loss, output = train(model, length, jit_compile)
    expected_loss, expected = train(known, length, False)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-4)
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-5)


def test_one_model_takes_batches_of_any_length(kernel_choice):
    options = OPTIONS["window, causal"]
    model = make_model(None, **options)
    for length in LENGTHS:
        tokens, _ = batch(length)
        known = make_model(length, **options)
        known.set_weights(model.get_weights())
        expected = to_numpy(known(tokens))
        np.testing.assert_allclose(model.predict(tokens, verbose=0), expected, atol=1e-5)
