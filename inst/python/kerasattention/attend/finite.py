"""NaN and infinity in masked-out keys and values reach neither outputs nor gradients.

A weight of zero is not enough, since 0 * NaN is NaN. So a kernel is given inputs in which
zeros replace the non-finite numbers, and the output of every query that sees such a key
or value becomes NaN. Which queries those are is computed only where a number is not finite.

Where a backend runs eagerly, one reduction of the inputs decides whether anything has to be
done. While JAX or XLA traces, the replacement is unconditional: it is fused into the copies
that bring the inputs into the kernel's layout. TensorFlow's other graphs decide when they run.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from kerasattention.attend.inputs import AttentionInputs
from kerasattention.attend.known_values import known_values, value_on_jax
from kerasattention.attend.poisoned_rows import (
    may_hold_infinity,
    poisoned_rows,
    sees_from_some_key_on,
)
from kerasattention.attend.tensors import (
    Span,
    Tensor,
    accumulator_of,
    are_finite,
    is_compiled_by_xla,
    is_dtensor,
    shape_of,
)

Kernel = Callable[[AttentionInputs], Tensor]


def with_finite_inputs(
    inputs: AttentionInputs, kernel: Kernel, rows: Span | None = None, of_values: bool = True
) -> Tensor:
    """Calls a kernel so that masked-out non-finite numbers have no effect.

    Args:
        inputs: Of the attention call.
        kernel: Computes (B, K, G, t, X) of inputs that are finite.
        rows: The queries that the kernel computes; None for all.
        of_values: Whether its result depends on the values.
    """
    if not may_mask_out(inputs):
        return kernel(inputs)
    finite = known_to_be_finite(_inputs(inputs))
    if finite is True:
        return kernel(inputs)
    rows = inputs.rows() if rows is None else rows
    if finite is None and decides_at_run_time():
        from kerasattention.attend.kernels.tensorflow import finite as finite_tensorflow

        return finite_tensorflow.with_finite_inputs(inputs, kernel, rows, of_values)
    output = kernel(cleaned(inputs))  # (B, K, G, t, X)
    return poison(output, _rows_of(inputs, rows, of_values, finite))


def may_mask_out(inputs: AttentionInputs) -> bool:
    """Whether a key or a query may be masked out that may hold a non-finite number."""
    mask = inputs.mask
    if mask.masked_out_is_finite:
        return False
    return (
        mask.masks_tokens
        or mask.query_mask is not None
        or mask.masks_positions(inputs.rows(), inputs.columns())
        or may_hold_infinity(inputs.bias)
    )


def cleaned(inputs: AttentionInputs) -> AttentionInputs:
    """The inputs with zeros in place of non-finite queries, keys and values."""
    query, key, value = (clean(x) for x in _inputs(inputs))
    return dataclasses.replace(inputs, query=query, key=key, value=value)


def _inputs(inputs: AttentionInputs) -> tuple[Tensor, Tensor, Tensor]:
    return inputs.query, inputs.key, inputs.value


def poison(output: Tensor, rows: Tensor) -> Tensor:
    """NaN in the given rows (B, K, G, t) of an output (B, K, G, t, X).

    A row's gradient becomes infinite, except where it is exactly zero: a row that the loss
    does not use changes no gradient.
    """
    if keras.backend.standardize_dtype(output.dtype) in ("float16", "bfloat16"):
        output = ops.cast(output, "float32")  # (B, K, G, t, X)
    if keras.backend.backend() == "tensorflow":
        from kerasattention.attend.kernels.tensorflow import finite as finite_tensorflow

        return finite_tensorflow.poison(output, rows)
    rows = rows[..., None]  # (B, K, G, t, 1)
    if keras.backend.backend() == "jax":
        from kerasattention.attend import poison_jax

        return poison_jax.poison(output, ops.broadcast_to(rows, output.shape))
    if keras.backend.backend() == "torch":
        from kerasattention.attend import poison_torch

        return poison_torch.poison(output, rows)
    return ops.where(rows, float("nan"), output)  # (B, K, G, t, X)


def _rows_of(inputs: AttentionInputs, rows: Span, of_values: bool, finite: bool | None) -> Tensor:
    """The poisoned rows (B, K, G, t), searched only where a number is not finite, if known."""

    def find() -> Tensor:
        return poisoned_rows(inputs, rows, of_values)

    at_once = finite is False or sees_from_some_key_on(inputs)
    if at_once or keras.backend.backend() not in ("jax", "tensorflow"):
        return find()
    shape = (*shape_of(inputs.query)[:3], rows.size)
    return ops.cond(are_finite(_inputs(inputs)), lambda: ops.zeros(shape, dtype="bool"), find)


# What is known, and what replaces numbers, on each backend ------------------------------


def decides_at_run_time() -> bool:
    """Whether a graph is traced that can branch on computed values."""
    if keras.backend.backend() != "tensorflow":
        return False
    return not is_compiled_by_xla()


def known_to_be_finite(tensors: Sequence[Tensor]) -> bool | None:
    """Whether all tensors are finite; None while that is not known, as in a trace."""
    backend = keras.backend.backend()
    if backend == "torch":
        return _known_on_torch(tensors)
    if backend == "jax":
        return _known_on_jax(tensors)
    if backend == "tensorflow":
        import tensorflow as tf

        return bool(are_finite(tensors)) if tf.executing_eagerly() else None
    return bool(are_finite(tensors))


def _known_on_torch(tensors: Sequence[Tensor]) -> bool | None:
    if known_values(tensors[0]) is None:
        return None
    sums = [_sum_on_torch(x) for x in tensors]
    try:
        if tensors[0].device.type == "cpu":
            # Half the time of adding them up first; elsewhere each would be waited for.
            return all(math.isfinite(x.item()) for x in sums)
        total: Any = sum(sums)
        return math.isfinite(total.item())
    except RuntimeError:  # no number: a fake or meta tensor, or torch.func.vmap()
        return None


def _sum_on_torch(x: Tensor) -> Tensor:
    import torch

    total = x.detach().sum(dtype=getattr(torch, accumulator_of(x.dtype)))
    if is_dtensor(x) and any(not (p.is_replicate() or p.is_shard(0)) for p in x.placements):
        # Processes that share samples must decide alike: each waits for the others later.
        return total.full_tensor()
    return total


def _known_on_jax(tensors: Sequence[Tensor]) -> bool | None:
    values = [value_on_jax(x) for x in tensors]
    # A gradient by a NumPy array has it for a value, which has no devices.
    if any(x is None or not getattr(x, "is_fully_addressable", True) for x in values):
        return None
    return bool(_jax_functions()[0](*values))


@functools.cache
def _jax_functions() -> tuple[Callable[..., Tensor], Callable[[Tensor], Tensor]]:
    """Whether arrays are finite, and the replacement, whose derivative is one."""
    import jax
    import jax.numpy as jnp

    @jax.jit
    def all_finite(*arrays: Tensor) -> Tensor:
        return functools.reduce(jnp.logical_and, [jnp.all(jnp.isfinite(x)) for x in arrays])

    @jax.custom_jvp
    def clean(x: Tensor) -> Tensor:
        return jnp.where(jnp.isfinite(x), x, 0)

    # That of a selection would keep a mask of each array for the backward pass.
    clean.defjvp(lambda primals, tangents: (clean(*primals), tangents[0]))
    return all_finite, clean


def clean(x: Tensor) -> Tensor:
    """Zeros in place of non-finite numbers; the derivative is one."""
    backend = keras.backend.backend()
    if backend == "torch":
        return _clean_on_torch(x)
    if backend == "jax":
        return _jax_functions()[1](x)
    if backend == "tensorflow":
        from kerasattention.attend.kernels.tensorflow import finite as finite_tensorflow

        return finite_tensorflow.clean(x)
    return ops.where(ops.isfinite(x), x, ops.zeros_like(x))


def _clean_on_torch(x: Tensor) -> Tensor:
    import torch

    if torch.compiler.is_compiling() or not x.requires_grad:
        return torch.where(torch.isfinite(x), x, 0.0)
    return _torch_function().apply(x)


@functools.cache
def _torch_function() -> Any:
    import torch

    class Clean(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x: Tensor) -> Tensor:
            return torch.where(torch.isfinite(x), x, 0.0)

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            pass

        @staticmethod
        def backward(ctx: Any, upstream: Tensor) -> Tensor:
            return upstream

        @staticmethod
        def jvp(ctx: Any, tangent: Tensor) -> Tensor:
            return tangent.clone()

    return Clean
