"""The importance of each head (Michel et al. 2019, https://arxiv.org/abs/1905.10650)."""

import operator
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from kerasattention._keras import get_keras_mask
from kerasattention.attend.tensors import Tensor, numpy_of, tensor_of
from kerasattention.layers.attention import AttentionLayer
from kerasattention.layers.context import AttentionContext, attention_context
from kerasattention.models.scores import layers_by_name, with_our_layers

Gates = list[Tensor]
Total = Callable[[Gates, Any, Any], Tensor]
Gradients = Callable[[list[np.ndarray], Any, np.ndarray], Gates]


def head_importance(
    model: keras.Model,
    x: Any,
    y: Any,
    *,
    loss: Any = None,
    batch_size: int = 32,
    normalize: bool = True,
) -> dict[str, np.ndarray]:
    """The mean size of the loss's gradient for a gate on each head.

    A gate of 1 multiplies each head's result. The importance of a head is the mean
    over examples of the absolute derivative of the loss by its gate.

    Args:
        model: A model with one output; ours or Keras's attention layers.
        x: Inputs (n, ...), or a list or dictionary of them.
        y: Targets (n, ...).
        loss: A Keras loss, by default the one the model is compiled with. Tokens that the mask of
            the output masks out have none, as in `fit()`.
        batch_size: Examples at a time.
        normalize: Whether to divide by the layer's Euclidean norm, as the paper
            does to compare layers.

    Returns:
        For each attention layer's name, (N) numbers.

    Raises:
        ValueError: No attention layer, several of one name, or no loss.
    """
    model = with_our_layers(model)
    layers = list(layers_by_name(model).values())
    loss_of = _loss_function(model, loss)
    x, y = keras.tree.map_structure(numpy_of, x), numpy_of(y)
    for part in keras.tree.flatten(x):
        if len(part) != len(y):
            raise ValueError(
                f"`x` and `y` must have the same number of samples. Received: {len(part)}, {len(y)}"
            )
    totals = [np.zeros(layer.heads.query) for layer in layers]
    gate_gradients = _gate_gradients(model, layers, loss_of)
    for start in range(0, len(y), batch_size):
        part = operator.itemgetter(slice(start, start + batch_size))
        gradients = gate_gradients(keras.tree.map_structure(part, x), part(y))
        for total, gradient in zip(totals, gradients, strict=True):
            total += np.abs(gradient).sum(axis=0)
    means = [total / len(y) for total in totals]
    if normalize:
        means = [mean / (np.linalg.norm(mean) or 1.0) for mean in means]
    return {layer.name: mean for layer, mean in zip(layers, means, strict=True)}


class _Gates(AttentionContext):
    """Multiplies the results of each layer's heads by gates (B, N)."""

    def __init__(self, layers: list[AttentionLayer], gates: Gates) -> None:
        self.gates = {layer.name: gate for layer, gate in zip(layers, gates, strict=True)}

    def scale_heads(self, layer: AttentionLayer, heads: Tensor) -> Tensor:
        gate = ops.cast(self.gates[layer.name], heads.dtype)
        # Folded axes put several rows of heads behind one example.
        repeats = heads.shape[0] // gate.shape[0]
        return heads * ops.repeat(gate, repeats, axis=0)[:, None, :, None]


def _loss_function(model: keras.Model, loss: Any) -> Callable[[Any, Tensor], Tensor]:
    loss = getattr(model, "loss", None) if loss is None else loss
    if loss is None or isinstance(loss, (list, dict)):
        raise ValueError(
            "`loss` must be one Keras loss, or the model compiled with one. "
            f"Received: loss={loss!r}"
        )
    function = keras.losses.get(loss)
    adds_up = getattr(function, "reduction", None) == "sum"

    def total(y: Any, prediction: Tensor) -> Tensor:
        """The sum over examples, so that each gate's gradient is its own example's."""
        values = _values_of(function, ops.convert_to_tensor(y), prediction)  # (B, ...) or ()
        if len(values.shape) == 0:  # a user's function has taken the mean over all
            return values * len(y)
        weights = _weights_of(values, get_keras_mask(prediction))  # (B, ...)
        values = ops.reshape(values * weights, (len(y), -1))  # (B, n)
        if adds_up:
            return ops.sum(values)
        counts = ops.sum(ops.reshape(weights, (len(y), -1)), axis=1)  # (B)
        return ops.sum(ops.sum(values, axis=1) / ops.maximum(counts, 1))

    return total


def _values_of(function: Any, y: Tensor, prediction: Tensor) -> Tensor:
    """The losses (B, ...), which a `Loss` would add up over the batch."""
    if not isinstance(function, keras.losses.Loss):
        return function(y, prediction)
    return function.call(ops.cast(y, function.dtype), ops.cast(prediction, function.dtype))


def _weights_of(values: Tensor, mask: Tensor | None) -> Tensor:
    """1 for each loss (B, ...) that counts, 0 for those of padding, as in `fit()`."""
    if mask is None:
        return ops.ones_like(values)
    rank = len(values.shape)
    if rank == len(mask.shape) + 1 and values.shape[-1] == 1:
        mask = ops.expand_dims(mask, -1)  # (B, ..., 1)
    if rank != len(mask.shape):
        raise ValueError(
            "`loss` must give a number for each token of an output with a mask, whose padding does "
            f"not count. Received: losses {tuple(values.shape)}, a mask {tuple(mask.shape)}"
        )
    return ops.cast(mask, values.dtype)


def _gate_gradients(
    model: keras.Model, layers: list[AttentionLayer], loss_of: Callable[[Any, Tensor], Tensor]
) -> Callable[[Any, np.ndarray], list[np.ndarray]]:
    """A function of inputs and targets that gives the gradient of each layer's gates (B, N)."""

    def total(gates: Gates, x: Any, y: Any) -> Tensor:
        with attention_context(_Gates(layers, gates)):
            return loss_of(y, model(x, training=False))

    differentiate = _GRADIENTS[keras.backend.backend()](model, total)

    def gradients(x: Any, y: np.ndarray) -> list[np.ndarray]:
        ones = [np.ones((len(y), layer.heads.query), "float32") for layer in layers]
        return [numpy_of(gradient) for gradient in differentiate(ones, x, y)]

    return gradients


def _tensorflow(model: keras.Model, total: Total) -> Gradients:
    import tensorflow as tf

    def gradients(ones: list[np.ndarray], x: Any, y: np.ndarray) -> Gates:
        gates = [tf.constant(one) for one in ones]
        with tf.GradientTape() as tape:
            tape.watch(gates)
            value = total(gates, x, y)
        return tape.gradient(value, gates)

    return gradients


def _jax(model: keras.Model, total: Total) -> Gradients:
    """Compiled as one: without that JAX compiles each operation, which takes longer."""
    import jax

    variables = list({id(v): v for v in model.variables}.values())

    def total_of_weights(weights: list[Tensor], gates: Gates, x: Tensor, y: Tensor) -> Tensor:
        with keras.StatelessScope(state_mapping=list(zip(variables, weights, strict=True))):
            return total(gates, x, y)

    differentiated = jax.grad(total_of_weights, argnums=1)
    # A model that runs eagerly may have a layer that cannot be compiled.
    function = differentiated if model.run_eagerly else jax.jit(differentiated)
    return lambda ones, x, y: function([v.value for v in variables], ones, x, y)


def _torch(model: keras.Model, total: Total) -> Gradients:
    import torch

    def gradients(ones: list[np.ndarray], x: Any, y: np.ndarray) -> Gates:
        gates = [tensor_of(one).requires_grad_() for one in ones]
        return list(torch.autograd.grad(total(gates, x, y), gates))

    return gradients


_GRADIENTS = {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}
