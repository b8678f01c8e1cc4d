"""Functional models of inputs whose length is not known until a batch comes."""

import keras
import numpy as np
import pytest

import kerasattention
from backends import BACKEND, sampled, tensor, to_numpy
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


class Block(keras.layers.Layer):
    """A block as users write it, with no method for the shape of its output."""

    def __init__(self, **options):
        super().__init__()
        self.attention = kerasattention.GroupQueryAttention(4, 6, 2, **options)

    def build(self, shape):
        self.attention.build(shape)

    def call(self, x):
        return x + self.attention(x, use_causal_mask=True)


BLOCKS = {
    "plain": {},
    "never holding scores": {"flash_attention": True},
    "dropout and alibi": {"dropout": 0.3, "position": kerasattention.AlibiPosition()},
    "a rule": {"mask": kerasattention.WindowMask(64) | kerasattention.PrefixMask(2)},
}


@pytest.mark.parametrize("length", [None, 521])
@pytest.mark.parametrize("name", BLOCKS)
def test_a_layer_of_users_that_holds_attention_has_a_shape(name, length):
    """Keras traces it with an unknown batch; 521 x 521 logits are too many for one product."""
    inputs = keras.Input((length, 7))
    block = Block(**BLOCKS[name])
    outputs = block(inputs)
    assert outputs.shape == (None, length, 7)
    x = tensor(np.random.default_rng(1).normal(size=(2, length or 5, 7)))
    found = to_numpy(keras.Model(inputs, outputs)(x))
    plain = Block(**BLOCKS[name] | {"flash_attention": False})
    plain.build((None, length, 7))
    plain.set_weights(block.get_weights())
    np.testing.assert_allclose(found, to_numpy(plain(x)), atol=2e-5)
