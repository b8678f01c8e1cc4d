"""Calls to make again and again: compiled, with gradients, every option that may race at once."""

import numpy as np

from backends import BACKEND, compiled, tensor, to_numpy
from kerasattention import scaled_dot_product_attention

B, T, N, K, H = 2, 301, 6, 3, 8
# Options of `scaled_dot_product_attention()`; lengths over one block, several threads' worth.
REPEATED = {
    "plain": {"implementation": "plain"},
    "blocked": {"implementation": "blocked"},
    "chosen": {"implementation": None},
}


def repeated(name, seed=0, length=T):
    """A function without arguments that gives arrays by name."""
    rng = np.random.default_rng(seed)
    inputs = {
        "query": rng.normal(size=(B, length, N, H)),
        "key": rng.normal(size=(B, length, K, H)),
        "value": rng.normal(size=(B, length, K, H)),
    }
    inputs = {name: tensor(x) for name, x in inputs.items()}
    mask = tensor(rng.random((B, 1, length, length)) < 0.8, "bool")
    # The kernel of torch honours a mask, the causal rule and no dropout.
    options = dict(REPEATED[name], causal=True, attention_mask=mask)
    if name != "chosen":
        sink = tensor(rng.normal(size=N))
        options |= {"dropout": 0.2, "seed": 5, "logit_soft_cap": 9.0, "sink": sink}

    def loss(query, key, value):
        output = scaled_dot_product_attention(query, key, value, **options)
        return (output * output).sum() if BACKEND == "jax" else output

    if BACKEND == "torch":
        return lambda: on_torch(loss, inputs)
    if BACKEND == "tensorflow":
        return on_tensorflow(loss, inputs)
    import jax

    run = jax.jit(jax.value_and_grad(lambda given: loss(**given)))

    def call():
        total, gradients = run(inputs)
        return {"loss": to_numpy(total)} | {n: to_numpy(g) for n, g in gradients.items()}

    return call


def on_torch(loss, inputs):
    import torch

    leaves = {name: x.detach().requires_grad_(True) for name, x in inputs.items()}
    output = loss(**leaves)
    found = torch.autograd.grad((output * output).sum(), list(leaves.values()))
    gradients = dict(zip(leaves, map(to_numpy, found), strict=True))
    return {"output": to_numpy(output.detach())} | gradients


def on_tensorflow(loss, inputs):
    import tensorflow as tf

    @compiled
    def run(given):
        with tf.GradientTape() as tape:
            tape.watch(given)
            output = loss(**given)
            total = tf.reduce_sum(output * output)
        return output, tape.gradient(total, given)

    def call():
        output, gradients = run(inputs)
        return {"output": to_numpy(output)} | {n: to_numpy(g) for n, g in gradients.items()}

    return call
