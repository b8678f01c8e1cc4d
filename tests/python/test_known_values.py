"""Which numbers are known when operations are chosen."""

import numpy as np
import pytest
from keras import ops

from backends import BACKEND, compiled, tensor, to_numpy
from kerasattention.attend.known_values import known_values, value_on_jax


def test_numbers_are_known_outside_of_compiled_functions():
    x = tensor(np.arange(3.0))
    np.testing.assert_array_equal(to_numpy(known_values(x)), [0, 1, 2])
    seen = []

    def function(x):
        seen.append(known_values(x) is not None)
        return ops.sum(x)

    compiled(function)(x)
    # torch's function of the tests is not compiled.
    assert seen[-1] == (BACKEND == "torch")


@pytest.mark.skipif(BACKEND != "jax", reason="JAX's tracers")
def test_numbers_within_a_gradient_of_jax():
    import jax

    seen = []

    def loss(x):
        seen.append(value_on_jax(x))
        return x.sum()

    x = tensor(np.arange(3.0))
    jax.grad(loss)(x)
    np.testing.assert_array_equal(seen.pop(), x)
    jax.jit(jax.grad(loss))(x)
    assert seen.pop() is None
