"""An interrupt (SIGINT) ends any call and leaves the model and the session usable."""

import os
import signal
import threading
import time

import keras
import numpy as np
import pytest
from keras import ops

from backends import BACKEND, JIT
from kerasattention import GroupQueryAttention, generate

VOCABULARY = 13
X = np.random.default_rng(1).integers(0, VOCABULARY, (6, 5)).astype("int32")
PROMPT = X[:1, :3]


@pytest.fixture(autouse=True)
def handler():
    """Python's own: what runs in a shell's background ignores SIGINT."""
    kept = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, kept)


class Interrupting(keras.layers.Layer):
    """Sends SIGINT in the next call, which is a trace on TensorFlow and JAX."""

    armed = False

    def call(self, x):
        if self.armed:
            self.armed = False
            os.kill(os.getpid(), signal.SIGINT)
        return x + 0.0


def made():
    keras.utils.set_random_seed(1)
    tokens = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(VOCABULARY, 8)(tokens)
    x = Interrupting()(x + GroupQueryAttention(4, 4, 2, use_causal_mask=True)(x))
    model = keras.Model(tokens, keras.layers.Dense(VOCABULARY)(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss, jit_compile=JIT)
    return model


@pytest.fixture(scope="module")
def model():
    """With all that is called below compiled."""
    model = made()
    model.fit(X, X, batch_size=2, verbose=0)
    model.predict(X, batch_size=2, verbose=0)
    return model


CALLS = {
    "fit": lambda model: model.fit(X, X, batch_size=2, epochs=3, verbose=0),
    "evaluate": lambda model: model.evaluate(X, X, batch_size=2, verbose=0),
    "predict": lambda model: model.predict(X, batch_size=2, verbose=0),
    "a forward pass": lambda model: model(ops.convert_to_tensor(X)),
    "generate": lambda model: generate(model, PROMPT, 7),
}


def interrupt(call, after):
    """Calls again and again until the interrupt ends it.

    Python ignores an interrupt that arrives in a finalizer, and Keras one that arrives while it
    compares the structure of inputs: others follow.
    """
    ended = threading.Event()

    def send():
        ended.wait(after)
        for _ in range(4):
            if not ended.is_set():
                os.kill(os.getpid(), signal.SIGINT)
            ended.wait(1.0)

    def run():
        sender.start()
        end = time.monotonic() + 20
        while time.monotonic() < end:
            call()

    call()  # compiled now
    sender = threading.Thread(target=send)
    try:
        with pytest.raises(KeyboardInterrupt):
            run()
    finally:
        ended.set()
        sender.join()


def weights(model):
    return [ops.convert_to_numpy(x.value) for x in (*model.weights, *model.optimizer.variables)]


TWIN = made()


def assert_usable(model):
    """It computes what another model with its weights computes, and trains."""
    assert all(np.isfinite(x).all() for x in weights(model))
    TWIN.set_weights(model.get_weights())
    expected = ops.convert_to_numpy(TWIN(ops.convert_to_tensor(X)))
    found = model.predict(X, batch_size=2, verbose=0)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    before = weights(model)
    model.fit(X, X, batch_size=2, verbose=0)
    assert any((x != y).any() for x, y in zip(weights(model), before, strict=True))


# What Keras says of an interrupt that it ignores.
@pytest.mark.filterwarnings("ignore:The structure of `inputs` doesn't match")
# What pytest makes of one in a finalizer, which Python ignores.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", CALLS)
def test_an_interrupt_at_any_time(model, name):
    before = weights(model)
    tokens = generate(model, PROMPT, 7)
    for after in (0.03, 0.11, 0.2):
        interrupt(lambda: CALLS[name](model), after)
        if name != "fit":
            for x, y in zip(weights(model), before, strict=True):
                np.testing.assert_array_equal(x, y)
    if name != "fit":
        np.testing.assert_array_equal(generate(model, PROMPT, 7), tokens)
    assert_usable(model)


@pytest.mark.parametrize("name", ["fit", "predict"])
def test_an_interrupt_in_the_first_step(name):
    """While it is traced and compiled."""
    model = made()
    culprit = next(x for x in model.layers if isinstance(x, Interrupting))
    if BACKEND == "torch":  # else Keras tries the model on meta tensors, and ignores what fails
        model.evaluate(X, X, verbose=0)
    model.optimizer.build(model.trainable_variables)
    before = model.get_weights()
    culprit.armed = True
    with pytest.raises(KeyboardInterrupt):
        CALLS[name](model)
    if name != "fit" or BACKEND != "jax":  # the step ended before
        for x, y in zip(model.get_weights(), before, strict=True):
            np.testing.assert_array_equal(x, y)
    assert_usable(model)


def endless(ends_after, ended):
    """Batches, and then an interrupt while the next one is waited for.

    On TensorFlow another thread runs this. It must not outlive the test: later tests that
    freed tensors waited for it without end. A main thread that waits within TensorFlow is
    interrupted when the next batch has come.
    """
    for _ in range(ends_after):
        yield X[:2], X[:2]
    os.kill(os.getpid(), signal.SIGINT)
    ended.wait(5)
    while not ended.is_set():
        yield X[:2], X[:2]


@pytest.mark.parametrize("batches", [0, 3])
def test_an_interrupt_while_data_are_waited_for(model, batches):
    ended = threading.Event()
    try:
        with pytest.raises(KeyboardInterrupt):
            model.fit(endless(batches, ended), steps_per_epoch=9, shuffle=False, verbose=0)
    finally:
        ended.set()
    assert_usable(model)
