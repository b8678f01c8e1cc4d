"""How each backend runs a layer at its best: a graph, a jit, or eagerly. Imports a backend."""

from collections.abc import Callable

import keras
import numpy as np
from keras import ops

BACKEND = keras.backend.backend()


def tensor(shape, seed=0, dtype="float32"):
    values = np.random.default_rng(seed).standard_normal(shape, dtype="float32")
    return ops.cast(ops.convert_to_tensor(values), dtype)


def forward(layer, x, jit_compile=False, **options) -> Callable:
    """A function that runs the layer on (x, x) in inference and waits for the result."""
    call = _inference(layer, options)
    return compiled(call, x, jit_compile=jit_compile)


def compiled(function, *inputs, jit_compile=False) -> Callable:
    """A function of tensors, compiled as the backend does it, that waits for its result."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        graph = tf.function(function, jit_compile=jit_compile)
        # Eager functions return when they are done on CPU.
        return lambda: graph(*inputs)
    if BACKEND == "jax":
        import jax

        jitted = jax.jit(function)
        return lambda: jax.block_until_ready(jitted(*inputs))
    import torch

    def run():
        with torch.no_grad():
            return function(*inputs)

    return run


def _inference(layer, options):
    if BACKEND != "jax":
        return lambda x: layer(x, x, training=False, **options)
    trainable = [v.value for v in layer.trainable_variables]
    rest = [v.value for v in layer.non_trainable_variables]

    def call(x):
        output, _ = layer.stateless_call(trainable, rest, x, x, training=False, **options)
        return output

    return call


def gradient_step(layer, x, jit_compile=False, training=True, **options) -> Callable:
    """A function that gives the gradients of mean(layer(x, x)^2) by all weights and by x."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        @tf.function(jit_compile=jit_compile)
        def step(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                output = layer(x, x, training=training, **options)
                loss = tf.reduce_mean(tf.square(output))
            return tape.gradient(loss, [*layer.trainable_variables, x])

        return lambda: step(x)
    if BACKEND == "jax":
        import jax

        rest = [v.value for v in layer.non_trainable_variables]

        def loss(trainable, x):
            output, _ = layer.stateless_call(trainable, rest, x, x, training=training, **options)
            return ops.mean(ops.square(output))

        step = jax.jit(jax.grad(loss, argnums=(0, 1)))
        trainable = [v.value for v in layer.trainable_variables]
        return lambda: jax.block_until_ready(step(trainable, x))
    import torch

    x = x.detach().clone().requires_grad_(True)
    variables = [v.value for v in layer.trainable_variables]

    def step():
        output = layer(x, x, training=training, **options)
        return torch.autograd.grad(output.square().mean(), [*variables, x])

    return step


def difference(left, right, valid=slice(None)) -> float:
    """The largest difference of two results (B, T, ...), or of two lists of gradients."""
    if isinstance(left, (list, tuple)):
        left, right = (_flat(side) for side in (left, right))
        return max(difference(a, b) for a, b in zip(left, right, strict=True))
    left, right = (ops.convert_to_numpy(ops.cast(side, "float32")) for side in (left, right))
    if left.ndim > 1:
        left, right = left[:, valid], right[:, valid]
    return float(np.abs(left - right).max())


def _flat(gradients):
    return [x for part in gradients for x in (part if isinstance(part, (list, tuple)) else [part])]


def settle() -> None:
    """Starts the backend's threads and allocator, so that an idle process is a ready one."""
    a = ops.ones((64, 64))
    ops.convert_to_numpy(ops.matmul(a, a))
