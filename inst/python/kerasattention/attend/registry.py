"""Which way computes a problem: the one table of choices and their reasons."""

import dataclasses
from collections.abc import Callable

import keras

from kerasattention.attend.inputs import AttentionInputs
from kerasattention.attend.kernels.blocked import blocked_attention
from kerasattention.attend.kernels.fused import fused_attention, prevents_fused
from kerasattention.attend.kernels.plain import plain_attention
from kerasattention.attend.tensors import Tensor, is_static

Way = Callable[[AttentionInputs], Tensor]

WAYS: dict[str, Way] = {
    "plain": plain_attention,
    "blocked": blocked_attention,
    "fused": fused_attention,
}

# Below this many logits per head the plain way is as fast and simpler.
PLAIN_LOGITS = 512 * 512
# Up to so many queries the logits are no more than a few numbers for each key.
FEW_QUERIES = 16


def _is_small(inputs: AttentionInputs) -> bool:
    length, keys = inputs.query.shape[3], inputs.key.shape[2]
    if is_static(length) and length <= FEW_QUERIES:
        return True
    if not is_static(length, keys):
        # TensorFlow's blocked way finds out when it runs; only JAX exports a model so, too.
        return keras.backend.backend() != "tensorflow"
    return length * keys <= PLAIN_LOGITS


def _has_kernel(inputs: AttentionInputs) -> bool:
    return prevents_fused(inputs) is None


@dataclasses.dataclass(frozen=True)
class Choice:
    """A row of the table: the way for problems of some backends that a condition describes."""

    way: str
    when: Callable[[AttentionInputs], bool]
    because: str
    holds_scores: bool = False
    backends: tuple[str, ...] = ("tensorflow", "jax", "torch", "numpy", "openvino")


# The first row that applies decides.
TABLE = (
    Choice(
        "fused",
        _has_kernel,
        "a kernel that never holds the logits; faster than the blocked way, and is given no copies",
        backends=("torch",),
    ),
    Choice(
        "fused",
        _has_kernel,
        "cuDNN's, on CUDA devices alone, writes no logits to memory; not yet measured by us",
        backends=("jax",),
    ),
    Choice(
        "plain",
        _is_small,
        "up to 512 x 512 logits stay in cache, and one product has the least to call",
        holds_scores=True,
    ),
    Choice(
        "blocked",
        lambda inputs: True,
        "linear in T, and every option; causal T = 4096 takes less than half of Keras's time",
    ),
)


def select_kernel(
    inputs: AttentionInputs, implementation: str | None, never_hold_scores: bool
) -> Way:
    """The way asked for, or the one that measured best for such a problem."""
    if implementation is not None:
        if implementation not in WAYS:
            raise ValueError(
                f"`implementation` must be one of {sorted(WAYS)} or None. "
                f"Received: {implementation!r}"
            )
        return WAYS[implementation]
    backend = keras.backend.backend()
    for choice in TABLE:
        allowed = not (never_hold_scores and choice.holds_scores)
        if allowed and backend in choice.backends and choice.when(inputs):
            return WAYS[choice.way]
    raise AssertionError("The last row of the table applies to everything.")
