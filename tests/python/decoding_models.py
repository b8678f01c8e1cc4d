"""Small models to decode, and their output by one full pass per prefix."""

import functools

import keras
import numpy as np
from keras import layers, ops

import kerasattention as ka
from backends import BACKEND, compiled

VOCABULARY, FEATURES = 29, 12
ROWS, TOKENS, PROMPT = 3, 11, 5


def embedded(length=None, **options):
    tokens = keras.Input((length,), dtype="int32", name="tokens")
    return tokens, layers.Embedding(VOCABULARY, FEATURES, **options)(tokens)


def model_of(body, length=None, **options):
    """Embedding, whatever `body` does with (B, T, D), and logits."""
    tokens, x = embedded(length, **options)
    return with_weights(keras.Model(tokens, layers.Dense(VOCABULARY)(body(x))))


def with_weights(model, seed=7):
    """Weights far from their initial values: biases, sinks and scales are not 0 or 1."""
    random = np.random.default_rng(seed)
    for variable in model.trainable_weights:
        # In NumPy: JAX compiles a sum for each shape.
        variable.assign(numpy(variable.value) + 0.3 * random.normal(size=variable.shape))
    return model


def attending(**options):
    """A residual grouped-query attention."""
    return lambda x: x + ka.GroupQueryAttention(6, 4, 2, **options)(x, use_causal_mask=True)


def draw_tokens(rows=ROWS, length=TOKENS, seed=3):
    return np.random.default_rng(seed).integers(0, VOCABULARY, (rows, length)).astype("int32")


def numpy(x):
    return ops.convert_to_numpy(x)


def full_pass(model, *inputs):
    """The whole output; on JAX one function for each model, compiled once for each shape.

    A change of the model's layers needs its own function: see `pass_of()`.
    """
    return _kept_pass(model)(*inputs)


def pass_of(model):
    """A function that gives the whole output of the model as it is now."""
    function = compiled(lambda *given: model.stateless_call(*given, training=False)[0])

    def run(*inputs):
        arguments = [ops.convert_to_tensor(x) for x in inputs]
        given = arguments if len(arguments) > 1 else arguments[0]
        if BACKEND != "jax":
            return numpy(model(given, training=False))
        state = model.trainable_variables, model.non_trainable_variables
        return numpy(function(*([v.value for v in part] for part in state), given))

    return run


_kept_pass = functools.lru_cache(maxsize=4)(pass_of)


def next_logits(model, rows, length):
    """What follows each row, alone: behind a row of a causal model anything may stand."""
    filled = np.stack([np.pad(row, (0, length - len(row))) for row in rows])
    output = full_pass(model, filled.astype("int32"))
    return np.stack([output[i, len(row) - 1] for i, row in enumerate(rows)])
