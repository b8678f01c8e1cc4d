"""The fused way: a backend's own kernel, where one honours what is asked for."""

from types import ModuleType

import keras

from kerasattention.attend.inputs import AttentionInputs
from kerasattention.attend.tensors import Tensor


def prevents_fused(inputs: AttentionInputs) -> str | None:
    """What keeps this problem from a kernel of the backend: an argument's name, or None."""
    kernels = _kernels()
    if kernels is None:
        return f"the backend ({keras.backend.backend()} has no kernel)"
    return kernels.prevents(inputs)


def fused_attention(inputs: AttentionInputs) -> Tensor:
    """(B, K, G, T, Hv).

    Raises:
        ValueError: An argument that no kernel of the backend honours.
    """
    reason = prevents_fused(inputs)
    if reason is not None:
        raise ValueError(
            '`implementation="fused"` computes attention with a kernel of the backend, '
            f'and none honours {reason}. Use `implementation="blocked"` or None.'
        )
    return _kernels().fused_attention(inputs)


def _kernels() -> ModuleType | None:
    backend = keras.backend.backend()
    if backend == "torch":
        from kerasattention.attend.kernels.torch import cpu_flash as fused_torch

        return fused_torch
    if backend == "jax":
        from kerasattention.attend.kernels.jax import cudnn as fused_jax

        return fused_jax
    return None
