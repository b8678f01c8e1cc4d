"""Inputs of kernels without non-finite numbers, in graphs of TensorFlow.

A graph decides when it runs whether numbers have to be replaced. The choices are made inside
functions with custom gradients: XLA cannot compile the gradient of `tf.cond`.
"""

from collections.abc import Callable

import tensorflow as tf

from kerasattention.attend.inputs import AttentionInputs
from kerasattention.attend.poisoned_rows import poisoned_rows
from kerasattention.attend.tensors import Span, Tensor, are_finite, shape_of


def with_finite_inputs(
    inputs: AttentionInputs,
    kernel: Callable[[AttentionInputs], Tensor],
    rows: Span,
    of_values: bool,
) -> Tensor:
    """`finite.with_finite_inputs()`, decided when the graph runs."""
    finite = tf.stop_gradient(are_finite((inputs.query, inputs.key, inputs.value)))  # ()
    shape = (*shape_of(inputs.query)[:3], rows.size)
    poisoned = tf.cond(
        finite,
        lambda: tf.zeros(shape, tf.bool),
        lambda: poisoned_rows(inputs, rows, of_values),
    )  # (B, K, G, t)
    named = inputs.tensors()
    names = ("query", "key", "value")
    cleaned = clean_unless(finite, *(named[name] for name in names))
    given = inputs.with_tensors(named | dict(zip(names, cleaned, strict=True)))
    return poison_unless(finite, kernel(given), poisoned)


@tf.custom_gradient
def clean(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Zeros in place of non-finite numbers; the derivative is one."""
    return _finite_or_zero(x), lambda upstream: upstream


def _finite_or_zero(x: Tensor) -> Tensor:
    # A number: a graph keeps zeros of a known shape as a constant, of a branch that never runs too.
    return tf.where(tf.math.is_finite(x), x, tf.zeros((), x.dtype))


def clean_unless(finite: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    """`clean()` of the inputs where they are not finite."""

    @tf.custom_gradient
    def function(*inputs: Tensor) -> tuple[tuple[Tensor, ...], Callable[..., tuple[Tensor, ...]]]:
        found = tf.cond(finite, lambda: inputs, lambda: tuple(map(_finite_or_zero, inputs)))
        for x, given in zip(found, inputs, strict=True):
            x.set_shape(given.shape)
        return found, lambda *upstream: upstream

    return function(*inputs)


def poison(output: Tensor, rows: Tensor) -> Tensor:
    """`finite.poison()`: Grappler would join two factors to one that overflows."""

    @tf.custom_gradient
    def function(output: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        return _poisoned(output, rows), lambda upstream: _poisoned_gradient(upstream, rows)

    return function(output)


def poison_unless(finite: Tensor, output: Tensor, rows: Tensor) -> Tensor:
    """`poison()` where the inputs were not finite."""

    @tf.custom_gradient
    def function(output: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        def gradient(upstream: Tensor) -> Tensor:
            return tf.cond(finite, lambda: upstream, lambda: _poisoned_gradient(upstream, rows))

        found = tf.cond(finite, lambda: output, lambda: _poisoned(output, rows))
        found.set_shape(output.shape)
        return found, gradient

    return function(output)


def _poisoned(output: Tensor, rows: Tensor) -> Tensor:
    return tf.where(
        rows[..., None], tf.constant(float("nan"), output.dtype), output
    )  # (B, K, G, t, X)


def _poisoned_gradient(upstream: Tensor, rows: Tensor) -> Tensor:
    used = tf.logical_and(rows[..., None], tf.not_equal(upstream, 0.0))  # (B, K, G, t, X)
    return tf.where(used, tf.constant(float("inf"), upstream.dtype), upstream)  # (B, K, G, t, X)
