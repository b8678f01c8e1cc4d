"""NaN in masked-out keys, or in rows without a loss, reaches no second derivative either."""

import keras
import numpy as np
from keras import ops

import kerasattention
from backends import BACKEND, tensor, to_numpy


def second_derivatives(loss, values, along):
    """The derivatives of the gradients of `loss(values)` along directions, as NumPy."""

    def product(gradients):
        return sum(ops.sum(gradients[name] * along[name]) for name in along)

    if BACKEND == "jax":
        import jax

        found = jax.jit(jax.grad(lambda x: product(jax.grad(loss)(x))))(values)
    elif BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as outer:
            outer.watch(values)
            with tf.GradientTape() as inner:
                inner.watch(values)
                total = loss(values)
            along_gradients = product(inner.gradient(total, values))
        found = outer.gradient(along_gradients, values)
    else:
        import torch

        values = {name: x.detach().clone().requires_grad_(True) for name, x in values.items()}
        first = torch.autograd.grad(loss(values), list(values.values()), create_graph=True)
        total = product(dict(zip(values, first, strict=True)))
        second = torch.autograd.grad(total, list(values.values()))
        found = dict(zip(values, second, strict=True))
    return {name: to_numpy(x) for name, x in found.items()}


def check(loss, values, name, places):
    """The same with NaN as with zeros at these places of a tensor."""
    rng = np.random.default_rng(3)
    along = {of: tensor(rng.normal(size=x.shape)) for of, x in values.items()}
    found = []
    for poison in (0.0, np.nan):
        changed = np.array(to_numpy(values[name]))
        changed[places] = poison
        found.append(second_derivatives(loss, values | {name: tensor(changed)}, along))
    for of, expected in found[0].items():
        assert abs(expected).max() > 1e-4, of
        np.testing.assert_allclose(found[1][of], expected, rtol=1e-4, atol=1e-5, err_msg=of)


def test_masked_out_keys_reach_no_second_derivative_of_a_layer():
    """Causal, with more keys than queries: their heads are NaN, and no mask says so."""
    layer = kerasattention.GroupQueryAttention(4, 6, 2, use_bias=False)
    rng = np.random.default_rng(1)
    values = {"query": rng.normal(size=(2, 5, 3)), "value": rng.normal(size=(2, 7, 3))}
    values = {name: tensor(x) for name, x in values.items()}
    layer(**values, use_causal_mask=True)
    weights = layer.trainable_variables

    def loss(values):
        with keras.StatelessScope(state_mapping=[(w, values[w.path]) for w in weights]):
            output = layer(values["query"], values["value"], use_causal_mask=True)
        return ops.sum(output**2)

    values |= {w.path: tensor(rng.normal(size=w.shape)) for w in weights}
    check(loss, values, "value", np.s_[:, 5:, 1:])


def test_later_steps_without_a_loss_reach_no_second_derivative():
    """Their outputs are NaN, and their gradients zero."""
    rng = np.random.default_rng(2)
    shapes = {"query": (2, 5, 6, 3), "key": (2, 5, 2, 3), "value": (2, 5, 2, 4)}
    values = {name: tensor(rng.normal(size=shape)) for name, shape in shapes.items()}

    def loss(values):
        output = kerasattention.scaled_dot_product_attention(
            **values, causal=True, implementation="blocked"
        )
        return ops.sum(output[:, :3] ** 2)

    check(loss, values, "key", np.s_[:, 3:, :, :2])
