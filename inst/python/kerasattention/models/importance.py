"""The importance of each head (Michel et al. 2019, https://arxiv.org/abs/1905.10650)."""

from collections.abc import Callable
from typing import Any, cast

import keras
import numpy as np
from keras import ops

from kerasattention.attend.tensors import Tensor, numpy_of, tensor_of
from kerasattention.layers.attention import AttentionLayer
from kerasattention.layers.context import AttentionContext, attention_context
from kerasattention.models.scores import choose_layers, with_our_layers

Gates = list[Tensor]


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
        x: Inputs (n, ...), y: targets (n, ...).
        loss: A Keras loss, by default the one the model is compiled with.
        batch_size: Examples at a time.
        normalize: Whether to divide by the layer's Euclidean norm, as the paper
            does to compare layers.

    Returns:
        For each attention layer's name, (N) numbers.

    Raises:
        ValueError: No attention layer, or no loss.
    """
    model = with_our_layers(model)
    layers = choose_layers(model)
    loss_of = _loss_function(model, loss)
    x, y = np.asarray(x), np.asarray(y)
    if len(x) != len(y):
        raise ValueError(f"`x` and `y` must have as many examples. Received: {len(x)}, {len(y)}")
    totals = [np.zeros(layer.heads.query) for layer in layers]
    for start in range(0, len(x), batch_size):
        part = slice(start, start + batch_size)
        for total, gradient in zip(
            totals, _gate_gradients(model, layers, loss_of, x[part], y[part]), strict=True
        ):
            total += np.abs(gradient).sum(axis=0)
    means = [total / len(x) for total in totals]
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
    function = cast("Callable[..., Tensor]", keras.losses.get(loss))

    def total(y: Any, prediction: Tensor) -> Tensor:
        """The sum over examples, so that each gate's gradient is its own example's."""
        values = function(ops.convert_to_tensor(y), prediction)
        if len(values.shape) == 0:  # a Loss object has taken the mean over all
            return values * len(y)
        return ops.sum(values) / (int(np.prod(values.shape)) // len(y))

    return total


def _gate_gradients(
    model: keras.Model,
    layers: list[AttentionLayer],
    loss_of: Callable[[Any, Tensor], Tensor],
    x: np.ndarray,
    y: np.ndarray,
) -> list[np.ndarray]:
    def total(gates: Gates) -> Tensor:
        with attention_context(_Gates(layers, gates)):
            return loss_of(y, model(x, training=False))

    ones = [np.ones((len(x), layer.heads.query), "float32") for layer in layers]
    gradients = _GRADIENTS[keras.backend.backend()](total, ones)
    return [numpy_of(gradient) for gradient in gradients]


def _tensorflow(total: Callable[[Gates], Tensor], ones: list[np.ndarray]) -> Gates:
    import tensorflow as tf

    gates = [tf.constant(one) for one in ones]
    with tf.GradientTape() as tape:
        tape.watch(gates)
        value = total(gates)
    return tape.gradient(value, gates)


def _jax(total: Callable[[Gates], Tensor], ones: list[np.ndarray]) -> Gates:
    import jax

    return jax.grad(total)(ones)


def _torch(total: Callable[[Gates], Tensor], ones: list[np.ndarray]) -> Gates:
    import torch

    gates = [tensor_of(one).requires_grad_() for one in ones]
    return list(torch.autograd.grad(total(gates), gates))


_GRADIENTS = {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}
