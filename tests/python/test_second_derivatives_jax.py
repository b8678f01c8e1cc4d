"""JAX's forward mode, alone and over reverse mode."""

import jax
import numpy as np
import pytest
from keras import ops

import reference
from backends import double, to_numpy
from problems import SMALL_BLOCK, block_size
from test_second_derivatives import (
    GIVEN,
    directions_of,
    expected,
    gradients,
)

pytestmark = pytest.mark.usefixtures("doubles")


def test_forward_mode_over_reverse_mode():
    given = GIVEN["all"]
    along, steps, differences = expected("all")
    values = {which: double(x) for which, x in given.trainable().items()}
    values["upstream"] = double(given.upstream)
    along = {which: double(x) for which, x in along.items()}

    def total(values):
        values = dict(values)
        upstream = values.pop("upstream")
        found = gradients(lambda **x: given.attend(**x, implementation="blocked"), values, upstream)
        return sum(ops.sum(found[name] * along[name]) for name in along)

    with block_size(SMALL_BLOCK):
        moved = {which: double(x) for which, x in steps.items()}
        derivative = jax.jit(lambda x, along: jax.jvp(total, (x,), (along,))[1])(values, moved)
    np.testing.assert_allclose(derivative, sum(differences.values()), rtol=1e-7)


def test_forward_mode_alone_is_right_or_an_error():
    given = GIVEN["causal"]
    values = {which: double(x) for which, x in given.trainable().items()}
    steps = {which: double(x) for which, x in directions_of(given, 6).items()}

    def tangent(implementation):
        return jax.jvp(
            lambda x: given.attend(**x, implementation=implementation), (values,), (steps,)
        )[1]

    moved = given.trainable()
    above, below = (
        reference.attention(
            *(moved[n] + sign * 1e-6 * to_numpy(steps[n]) for n in ("query", "key", "value")),
            seen=given.seen,
        )[0]
        for sign in (1, -1)
    )
    expected = (above - below) / 2e-6
    np.testing.assert_allclose(to_numpy(tangent("plain")), expected, rtol=1e-6, atol=1e-8)
    with block_size(SMALL_BLOCK), pytest.raises(TypeError, match="forward-mode"):
        tangent("blocked")
