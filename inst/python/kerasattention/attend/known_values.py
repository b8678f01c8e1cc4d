"""Whether the numbers of a tensor are known when the operations on it are chosen."""

import keras

from kerasattention.attend.tensors import Tensor


def known_values(x: Tensor) -> Tensor | None:
    """The tensor, or None in graphs and in functions that are compiled.

    A fake or meta tensor of torch, and one within `torch.func.vmap()`, is given back too: to read
    it is a RuntimeError.
    """
    backend = keras.backend.backend()
    if backend == "jax":
        return value_on_jax(x)
    if backend == "tensorflow":
        import tensorflow as tf

        return x if tf.executing_eagerly() else None
    if backend == "torch":
        import torch

        is_tracing = torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
        if torch.compiler.is_compiling() or is_tracing:
            return None
        if x.is_cuda and torch.cuda.is_current_stream_capturing():
            return None
    return x


def value_on_jax(x: Tensor) -> Tensor | None:
    """The array of a tensor, also within a gradient that is not compiled; None in other traces."""
    from jax.core import Tracer

    while isinstance(x, Tracer):
        x = getattr(x, "primal", None)
    return x
