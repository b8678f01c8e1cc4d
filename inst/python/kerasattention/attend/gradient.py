"""Functions with a backward pass of their own, on each backend.

`forward` maps named tensors to (output, kept); `backward` maps the same named
tensors, output, kept and the output's gradient to a gradient per differentiable
name. Every tensor goes in by name, none by closure: JAX needs to see them all.
"""

from collections.abc import Callable
from typing import Any

import keras

from kerasattention.attend.tensors import Tensor

Named = dict[str, Tensor]
Forward = Callable[[Named], tuple[Tensor, Tensor]]
Backward = Callable[[Named, Tensor, Tensor, Tensor], Named]


def with_gradient(
    forward: Forward, backward: Backward, named: Named, differentiable: list[str]
) -> Tensor:
    """Runs `forward` so that differentiating it runs `backward`."""
    run = {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}.get(keras.backend.backend())
    if run is None:
        return forward(named)[0]
    return run(forward, backward, named, differentiable)


def _cast_like(gradients: Named, named: Named) -> Named:
    return {
        name: keras.ops.cast(gradient, named[name].dtype) for name, gradient in gradients.items()
    }


def _tensorflow(
    forward: Forward, backward: Backward, named: Named, differentiable: list[str]
) -> Tensor:
    import tensorflow as tf

    names = list(named)

    @tf.custom_gradient
    def function(*values: Any) -> Any:
        inputs = dict(zip(names, values, strict=True))
        output, kept = forward(inputs)

        def gradient(upstream: Tensor) -> list[Tensor | None]:
            gradients = _cast_like(backward(inputs, output, kept, upstream), inputs)
            return [gradients.get(name) for name in names]

        return output, gradient

    return function(*[tf.convert_to_tensor(named[name]) for name in names])


def _jax(forward: Forward, backward: Backward, named: Named, differentiable: list[str]) -> Tensor:
    import jax
    import jax.numpy as jnp

    @jax.custom_vjp
    def function(moving: Named, fixed: Named) -> Tensor:
        return forward(moving | fixed)[0]

    def run_forward(moving: Named, fixed: Named) -> tuple[Tensor, Any]:
        output, kept = forward(moving | fixed)
        return output, (moving, fixed, output, kept)

    def run_backward(saved: Any, upstream: Tensor) -> tuple[Named, None]:
        moving, fixed, output, kept = saved
        gradients = backward(moving | fixed, output, kept, upstream)
        return _cast_like(gradients, moving), None

    function.defvjp(run_forward, run_backward)
    arrays = {name: jnp.asarray(x) for name, x in named.items()}
    moving = {name: arrays[name] for name in differentiable}
    fixed = {name: x for name, x in arrays.items() if name not in moving}
    return function(moving, fixed)


def _torch(forward: Forward, backward: Backward, named: Named, differentiable: list[str]) -> Tensor:
    import torch

    names = list(named)

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *values: Tensor) -> Tensor:
            output, kept = forward(dict(zip(names, values, strict=True)))
            ctx.save_for_backward(*values, output, kept)
            return output

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
            *values, output, kept = ctx.saved_tensors
            inputs = dict(zip(names, values, strict=True))
            gradients = _cast_like(backward(inputs, output, kept, upstream), inputs)
            return tuple(gradients.get(name) for name in names)

    return Function.apply(*[named[name] for name in names])
