"""Dropout under torch's own checkpoints, in one another and without the generator's state."""

import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint

from backends import tensor, to_numpy
from kerasattention import scaled_dot_product_attention
from test_remat import X, input_gradient, made


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # of the inner one
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoints_in_one_another(use_reentrant):
    def gradients(run):
        layers = [made(), made()]

        def inner(x):
            return x + layers[0](x, training=True)

        def outer(x):
            return layers[1](run(inner, run(inner, x)), training=True)

        return input_gradient(lambda x: run(outer, x))

    found = gradients(lambda f, x: checkpoint(f, x, use_reentrant=use_reentrant))
    np.testing.assert_allclose(found, gradients(lambda f, x: f(x)), rtol=1e-5, atol=1e-5)


def test_the_global_generator():
    x = tensor(np.random.default_rng(0).normal(size=(1, 5, 2, 3))).requires_grad_(True)

    def attend(x):
        return scaled_dot_product_attention(x.detach(), x.detach(), x, dropout=0.5)

    output = checkpoint(attend, x, use_reentrant=False)
    output.sum().backward()
    # Linear in the values: the gradient times the values is the sum.
    total = (x.grad * x.detach()).sum()
    np.testing.assert_allclose(float(total), float(output.detach().sum()), rtol=1e-5)


def test_a_second_run_that_cannot_be_known_is_refused():
    layer = made()
    x = tensor(X).requires_grad_(True)
    output = checkpoint(
        lambda x: layer(x, training=True), x, use_reentrant=False, preserve_rng_state=False
    )
    torch.rand(1)
    with pytest.raises(RuntimeError, match="cannot be drawn again"):
        output.sum().backward()
    assert to_numpy(output.detach()).shape == X.shape
