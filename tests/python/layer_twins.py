"""Keras's attention layers and ours side by side, with the same weights."""

import contextlib
import warnings

import keras
import numpy as np

import kerasattention
from backends import BACKEND, compiled, tensor, to_numpy
from kerasattention._keras import set_keras_mask

KINDS = {
    "MultiHeadAttention": (keras.layers.MultiHeadAttention, kerasattention.MultiHeadAttention),
    "GroupQueryAttention": (keras.layers.GroupQueryAttention, kerasattention.GroupQueryAttention),
}


def twins(kind, options, *shapes, seed=0):
    """Keras's layer and ours, built for these shapes, every weight random (biases too)."""
    options = {"kernel_initializer": "zeros"} | options
    theirs, ours = (make(**options) for make in KINDS[kind])
    for layer in (theirs, ours):
        layer.build(*shapes)
    randomize(theirs, seed)
    ours.set_weights(theirs.get_weights())
    return theirs, ours


def randomize(layer, seed=0):
    """Random weights, scaled so that logits are of size 1; states of generators stay."""
    rng = np.random.default_rng(seed)
    for weight in layer.trainable_weights:
        fan = np.prod(weight.shape[:-2]) if weight.path.endswith("kernel") else 4
        weight.assign(rng.normal(size=weight.shape) / np.sqrt(fan))


def weights_of(layer):
    """The layer's weights by the end of their path, such as "query/kernel" or "sink"."""
    own = layer.path.count("/") + 1
    return {
        "/".join(weight.path.split("/")[own:]): to_numpy(weight.value)
        for weight in layer.weights
        if not weight.path.endswith("seed_generator_state")
    }


def random_inputs(*shapes, seed=1):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype("float32") for shape in shapes]


@contextlib.contextmanager
def keras_loses_masks():
    """Around Keras's grouped layer, whose projections warn that they lose a mask; ours keep it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not support masking", UserWarning)
        yield


def call(layer, inputs, masks=(), **options):
    """Calls a layer on arrays; `masks` (or None) are attached to the inputs as Keras masks."""
    inputs = [tensor(x) if isinstance(x, np.ndarray) else x for x in inputs]
    for x, mask in zip(inputs, masks, strict=False):
        if mask is not None:
            set_keras_mask(x, tensor(mask))
    options = {k: tensor(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    return layer(*inputs, **options)


def output_of(layer, inputs, masks=(), **options):
    """The output of `call()` as NumPy; on JAX compiled as a whole, not op by op."""
    if BACKEND != "jax":
        return to_numpy(call(layer, inputs, masks, **options))
    function, values = pure(layer, inputs, masks, **options)
    return to_numpy(compiled(lambda given: function(**given)[0])(values))


def pure(layer, inputs, masks=(), **options):
    """A layer's call as a function of its trainable weights and inputs, for differentiation.

    Returns:
        The function, giving a tuple, and its arguments by name.
    """
    # Two digits: JAX hands a dictionary back in the order of its names.
    values = {f"weight{i:02}": w.value for i, w in enumerate(layer.trainable_variables)}
    values |= {f"input{i}": tensor(x) for i, x in enumerate(inputs)}
    rest = [v.value for v in layer.non_trainable_variables]
    options = {k: tensor(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    attached = [None if mask is None else tensor(mask) for mask in masks]

    def function(**named):
        weights = [x for name, x in named.items() if name.startswith("weight")]
        tensors = [x for name, x in named.items() if name.startswith("input")]
        handed = {}
        for x, mask, name in zip(tensors, attached, ("query", "value", "key"), strict=False):
            if mask is not None:
                # What `Layer.__call__` does, which a stateless call leaves out.
                set_keras_mask(x, mask)
                handed[f"{name}_mask"] = mask
        outputs, _ = layer.stateless_call(weights, rest, *tensors, **handed, **options)
        return outputs if isinstance(outputs, tuple) else (outputs,)

    return function, values
