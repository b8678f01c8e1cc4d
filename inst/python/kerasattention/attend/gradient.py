"""Functions with a custom backward pass, on each backend.

`forward` maps inputs to (output, kept); `backward` maps the same inputs, output, kept and the
output's gradient to a gradient per differentiable name. Every tensor goes in by name, none by
closure: JAX needs to see them all.

A backward pass that is itself differentiated is that of the plain formula, which the
backend can differentiate as often as asked for: it holds (T, S) logits. In a gradient of
first order the plain formula is not computed.
"""

from collections.abc import Callable
from typing import Any

import keras

from kerasattention.attend.inputs import AttentionInputs
from kerasattention.attend.kernels.plain import plain_attention
from kerasattention.attend.tensors import Tensor

Named = dict[str, Tensor]
Forward = Callable[[Named], tuple[Tensor, Tensor]]
Backward = Callable[[Named, Tensor, Tensor, Tensor], Named]
InputsForward = Callable[[AttentionInputs], tuple[Tensor, Tensor]]
InputsBackward = Callable[[AttentionInputs, Tensor, Tensor, Tensor], Named]
Plain = Callable[[Named], Tensor]


def with_gradient(
    forward: InputsForward, backward: InputsBackward, inputs: AttentionInputs
) -> Tensor:
    """Runs `forward` on the inputs so that differentiating it runs `backward`.

    Both get inputs of which all blocks share what they can (`with_shared_products()`).
    """
    named = inputs.tensors()

    def run_forward(named: Named) -> tuple[Tensor, Tensor]:
        return forward(inputs.with_tensors(named).with_shared_products())

    def run_backward(named: Named, output: Tensor, kept: Tensor, upstream: Tensor) -> Named:
        given = inputs.with_tensors(named).with_shared_products()
        return given.fold_shared_gradients(backward(given, output, kept, upstream))

    run = {"tensorflow": _tensorflow, "jax": with_gradient_jax, "torch": _torch}.get(
        keras.backend.backend()
    )
    if run is None:
        return run_forward(named)[0]

    def plain(named: Named) -> Tensor:
        return plain_attention(inputs.with_tensors(named))

    return run(run_forward, run_backward, plain, named, inputs.differentiable())


def _cast_like(gradients: Named, named: Named) -> Named:
    return {
        name: keras.ops.cast(gradient, named[name].dtype) for name, gradient in gradients.items()
    }


def _tensorflow(
    forward: Forward, backward: Backward, plain: Plain, named: Named, differentiable: list[str]
) -> Tensor:
    import tensorflow as tf

    names = list(named)

    @tf.custom_gradient
    def function(*values: Any) -> Any:
        # An eager tape would keep what the blocks make, all of their scores, beside this gradient.
        inputs = {name: tf.stop_gradient(x) for name, x in zip(names, values, strict=True)}
        output, kept = forward(inputs)

        def gradient(upstream: Tensor) -> list[Tensor | None]:
            found = first_order(*values, output, kept, upstream)
            gradients = dict(zip(differentiable, found, strict=True))
            return [gradients.get(name) for name in names]

        return output, gradient

    @tf.custom_gradient
    def first_order(*given: Any) -> Any:
        *values, output, kept, upstream = given
        inputs = dict(zip(names, values, strict=True))
        gradients = _cast_like(backward(inputs, output, kept, upstream), inputs)

        def gradient(*directions: Tensor) -> list[Tensor | None]:
            *found, of_upstream = second_order(inputs, upstream, directions)
            gradients = dict(zip(differentiable, found, strict=True))
            # The output and `kept` are functions of the inputs, whose gradients include theirs.
            return [*(gradients.get(name) for name in names), None, None, of_upstream]

        return [gradients[name] for name in differentiable], gradient

    def second_order(
        inputs: Named, upstream: Tensor, directions: tuple[Tensor, ...]
    ) -> list[Tensor]:
        # Tapes tell tensors apart by identity, and one may be given under two names.
        moving = {name: tf.identity(inputs[name]) for name in differentiable}
        wanted = [*moving.values(), upstream]
        zero = tf.UnconnectedGradients.ZERO
        with tf.GradientTape() as outer:
            outer.watch(wanted)
            with tf.GradientTape() as inner:
                inner.watch(wanted[:-1])
                output = tf.cast(plain(inputs | moving), upstream.dtype)
            parts: Any = inner.gradient(output, wanted[:-1], upstream, unconnected_gradients=zero)
            # The gradient of a table that rows are gathered from is sparse, which no tape takes.
            found = [tf.convert_to_tensor(part) for part in parts]
        return outer.gradient(found, wanted, list(directions), unconnected_gradients=zero)

    return function(*[tf.convert_to_tensor(named[name]) for name in names])


def with_gradient_jax(
    forward: Forward, backward: Backward, plain: Plain, named: Named, differentiable: list[str]
) -> Tensor:
    """As `with_gradient()`, with the plain formula given; the output may be a tuple of tensors."""
    import jax
    import jax.numpy as jnp

    # `function` has a gradient in reverse mode. What its passes compute is differentiated in
    # either mode: by rules whose tangents are those of the plain formula.
    @jax.custom_vjp
    def function(moving: Named, fixed: Named) -> Tensor:
        return forward(moving | fixed)[0]

    def run_forward(moving: Named, fixed: Named) -> tuple[Tensor, Any]:
        output, kept = run(moving, fixed)
        return output, (moving, fixed, output, kept)

    def run_backward(saved: Any, upstream: Tensor) -> tuple[Named, None]:
        moving, fixed, output, kept = saved
        return first_order(moving, fixed, output, kept, upstream), None

    @jax.custom_jvp
    def run(moving: Named, fixed: Named) -> tuple[Tensor, Tensor]:
        return forward(moving | fixed)

    @run.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        moving, fixed = primals
        output, kept = run(moving, fixed)
        of_plain = jax.jvp(lambda x: plain(x | fixed), (moving,), (tangents[0],))[1]
        # Only `first_order` reads `kept`, and its rule does not use the tangent of it.
        return (output, kept), (_cast_tree(of_plain, output), jnp.zeros_like(kept))

    @jax.custom_jvp
    def first_order(
        moving: Named, fixed: Named, output: Tensor, kept: Tensor, upstream: Tensor
    ) -> Named:
        return _cast_like(backward(moving | fixed, output, kept, upstream), moving)

    @first_order.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        moving, fixed, _, _, upstream = primals

        def of_plain(moving: Named, upstream: Tensor) -> Named:
            output, pull = jax.vjp(lambda x: plain(x | fixed), moving)
            return pull(_cast_tree(upstream, output))[0]

        along = jax.jvp(of_plain, (moving, upstream), (tangents[0], tangents[-1]))[1]
        return first_order(*primals), along

    function.defvjp(run_forward, run_backward)
    arrays = {name: jnp.asarray(x) for name, x in named.items()}
    moving = {name: arrays[name] for name in differentiable}
    fixed = {name: x for name, x in arrays.items() if name not in moving}
    return function(moving, fixed)


def _cast_tree(tree: Any, like: Any) -> Any:
    return keras.tree.map_structure(lambda x, y: x.astype(y.dtype), tree, like)


def _torch(
    forward: Forward, backward: Backward, plain: Plain, named: Named, differentiable: list[str]
) -> Tensor:
    import torch

    names = list(named)

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *values: Tensor) -> Tensor:
            output, kept = forward(dict(zip(names, values, strict=True)))
            ctx.save_for_backward(*values, output, kept)
            return output

        @staticmethod
        def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
            *values, output, kept = ctx.saved_tensors
            inputs = dict(zip(names, values, strict=True))
            # With gradients on, the caller has asked for a graph of this gradient.
            if torch.is_grad_enabled():
                needed = zip(names, ctx.needs_input_grad, strict=True)
                wanted = [name for name, is_needed in needed if is_needed]
                gradients = differentiable_gradients(inputs, wanted, upstream)
            else:
                gradients = _cast_like(backward(inputs, output, kept, upstream), inputs)
            return tuple(gradients.get(name) for name in names)

    def differentiable_gradients(inputs: Named, wanted: list[str], upstream: Tensor) -> Named:
        # Views: one input may be a function of another, or the same tensor.
        moving = {name: inputs[name].view_as(inputs[name]) for name in wanted}
        output = plain(inputs | moving).to(upstream.dtype)
        found = torch.autograd.grad(
            output, list(moving.values()), upstream, create_graph=True, materialize_grads=True
        )
        return dict(zip(wanted, found, strict=True))

    return Function.apply(*[named[name] for name in names])
