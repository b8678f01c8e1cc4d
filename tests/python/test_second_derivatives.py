"""Gradients of gradients: along directions, against central differences of the reference.

What is differentiated is the sum of each gradient of first order times a direction, by every
input and by the gradient that comes in from above.
"""

import contextlib
import functools

import numpy as np
import pytest
from keras import ops

import reference
from backends import BACKEND, compiled, double, to_numpy
from problems import SEED, SMALL_BLOCK, block_size, problem, sum_to

# Central differences need float64.
pytestmark = pytest.mark.usefixtures("doubles")

SIZES = {"B": 2, "K": 2, "G": 3, "H": 5, "Hv": 3, "T": 11, "S": 13}
N = SIZES["K"] * SIZES["G"]


def made(**options):
    return problem(**SIZES, **options)


def _random(*shape):
    return np.random.default_rng(1).normal(size=shape)


PADDED = np.arange(13) < np.array([[13], [4]])
HIDDEN = np.random.default_rng(2).random((2, N, 11, 13)) < 0.6
HIDDEN[:, :, 3] = False  # a row without keys

GIVEN = {
    "causal": made(mask_fields={"causal": True}),
    "window": made(mask_fields={"causal": True, "window": 4}),
    "padding and a sink": made(sink=_random(N), mask_fields={"key_mask": PADDED}),
    "all": made(
        rate=0.3,
        cap=1.3,
        scale=0.9,
        sink=_random(N),
        bias=_random(2, N, 11, 13),
        mask_fields={"mask": HIDDEN, "window": 9},
    ),
}
CASES = [(name, "blocked") for name in GIVEN]
if BACKEND == "torch":
    # Torch's public function in one call and in several, and its kernel of the CPU.
    CASES += [(name, "fused") for name in ("causal", "window", "padding and a sink")]


def directions_of(given, seed):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=x.shape) for name, x in given.trainable().items()}


def first_order(given, values, upstream):
    """The reference's gradients of sum(output * upstream) at these values."""
    options = {name: values.get(name) for name in ("bias", "sink")}
    if given.rate:
        options |= {"keep": reference.kept_weights(SEED, given.shape, given.rate)}
    found = reference.attention_gradients(
        values["query"],
        values["key"],
        values["value"],
        upstream,
        scale=given.scale,
        cap=given.cap,
        seen=given.seen,
        rate=given.rate,
        **options,
    )
    if given.bias is not None:
        found["bias"] = sum_to(found["bias"], given.bias.shape)
    return found


@functools.cache
def expected(name):
    """The derivative along a direction of each input, by central differences."""
    given, step = GIVEN[name], 1e-5
    along = directions_of(given, 5)
    steps = directions_of(given, 6) | {
        "upstream": np.random.default_rng(7).normal(size=(2, 11, N, 3))
    }
    values = given.trainable() | {"upstream": given.upstream}

    def total(**changed):
        moved = values | changed
        found = first_order(given, moved, moved["upstream"])
        return sum(np.sum(found[which] * along[which]) for which in along)

    return (
        along,
        steps,
        {
            which: (
                total(**{which: values[which] + step * direction})
                - total(**{which: values[which] - step * direction})
            )
            / (2 * step)
            for which, direction in steps.items()
        },
    )


def tf_gradients(function, values, upstream):
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(values)
        output = function(**values)
    return tape.gradient(output, values, upstream)


def torch_gradients(function, values, upstream):
    import torch

    output = function(**values)
    found = torch.autograd.grad(output, list(values.values()), upstream, create_graph=True)
    return dict(zip(values, found, strict=True))


def jax_gradients(function, values, upstream):
    import jax

    return jax.vjp(lambda x: function(**x), values)[1](upstream)[0]


def gradients(function, values, upstream):
    """The gradients of sum(output * upstream), which can be differentiated again."""
    run = {"tensorflow": tf_gradients, "torch": torch_gradients, "jax": jax_gradients}
    return run[BACKEND](function, values, upstream)


def gradient_of(loss, values):
    """The gradients of a scalar by a dictionary of tensors."""
    if BACKEND == "torch":
        values = {name: x.clone().requires_grad_(True) for name, x in values.items()}
        return gradients(lambda **x: loss(x), values, ops.ones((), "float64"))
    return gradients(lambda **x: loss(x), values, ops.ones((), "float64"))


def second_order(given, implementation, along):
    """A function of inputs and upstream, in one dictionary: its gradients of second order."""

    def total(values):
        values = dict(values)
        upstream = values.pop("upstream")
        found = gradients(
            lambda **x: given.attend(**x, implementation=implementation), values, upstream
        )
        return sum(ops.sum(found[name] * along[name]) for name in along)

    return lambda values: gradient_of(total, values)


def compiled_on_jax(function):
    return compiled(function) if BACKEND == "jax" else function


@pytest.mark.parametrize(("name", "implementation"), CASES)
def test_second_order(name, implementation):
    given = GIVEN[name]
    along, steps, differences = expected(name)
    along = {which: double(x) for which, x in along.items()}
    values = {which: double(x) for which, x in given.trainable().items()}
    values["upstream"] = double(given.upstream)
    with block_size(SMALL_BLOCK) if implementation == "blocked" else contextlib.nullcontext():
        found = compiled_on_jax(second_order(given, implementation, along))(values)
    for which, direction in steps.items():
        derivative = np.sum(to_numpy(found[which]) * direction)
        np.testing.assert_allclose(derivative, differences[which], rtol=1e-7, err_msg=which)


def test_third_order():
    """Of one function: the plain formula's, which the backend differentiates by itself."""
    given = made(sink=_random(N), bias=_random(N, 11, 13)[None], mask_fields={"causal": True})
    along, again = (
        {name: double(x) for name, x in directions_of(given, seed).items()} for seed in (5, 6)
    )
    values = {name: double(x) for name, x in given.trainable().items()}
    values["upstream"] = double(given.upstream)

    def third(implementation):
        def total(values):
            found = second_order_of(values)
            return sum(ops.sum(found[name] * again[name]) for name in again)

        second_order_of = second_order(given, implementation, along)
        return lambda values: gradient_of(total, values)

    def both_ways(values):
        with block_size(SMALL_BLOCK):
            return third("plain")(values), third("blocked")(values)

    expected, found = compiled_on_jax(both_ways)(values)
    for name in values:
        np.testing.assert_allclose(
            to_numpy(found[name]), to_numpy(expected[name]), rtol=1e-9, atol=1e-9, err_msg=name
        )
