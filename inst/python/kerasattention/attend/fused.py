"""The fused way: a backend's own kernel, where one honours what is asked for."""

import keras

from kerasattention.attend.problem import Problem
from kerasattention.attend.tensors import Tensor


def prevents_fused(problem: Problem) -> str | None:
    """What keeps this problem from a kernel of the backend: an argument's name, or None."""
    backend = keras.backend.backend()
    if backend == "torch":
        from kerasattention.attend import fused_torch

        return fused_torch.prevents(problem)
    return f"the backend ({backend} has no kernel here)"


def fused_attention(problem: Problem) -> Tensor:
    """(B, K, G, T, Hv).

    Raises:
        ValueError: An argument that no kernel of the backend honours.
    """
    reason = prevents_fused(problem)
    if reason is not None:
        raise ValueError(
            '`implementation="fused"` computes attention with a kernel of the backend, '
            f'and none honours {reason}. Use `implementation="blocked"` or None.'
        )
    from kerasattention.attend import fused_torch

    return fused_torch.fused_attention(problem)
