"""The kernels in one ordered table, and the function that selects one of them.

`select_kernel()` takes the first row of `KERNELS` that is for the backend and the device, is
preferred for the inputs and supports them. A new kernel is a module in `kernels/` and a row here.

All but the plain kernel leave out keys that the rules of positions mask out for a whole block of
queries, where positions are indices and lengths are known: one range of keys (causal rule, window),
or several spans (`KeySpans`), which become one block (`blocked`, torch.sdpa, torch.cpu_flash,
tensorflow.*) or a list of tiles (torch.tiled, jax.tiled). With unknown lengths and within XLA,
tensorflow.loop leaves out what is beyond a rule's reach. jax.cudnn takes one range only.
"""

import dataclasses
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import keras

from kerasattention._keras import in_symbolic_scope
from kerasattention.attend.inputs import AttentionInputs
from kerasattention.attend.tensors import Tensor, is_static

# Up to this many logits per head the plain kernel is as fast and simpler.
PLAIN_LOGITS = 512 * 512
# Up to this many queries the logits are no more than a few numbers for each key.
FEW_QUERIES = 16

Run = Callable[[AttentionInputs, int | None], Tensor]
Unsupported = Callable[[AttentionInputs], str | None]
Preferred = Callable[[AttentionInputs, int | None], bool]


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A row of the table.

    Attributes:
        name: Unique among the rows.
        implementation: "plain", "blocked" or "fused": what callers may ask for.
        run: Computes (B, K, G, T, Hv) of the inputs, with a block size or None for its own.
        because: Why it stands at this place of the table.
        backends: Backends that it runs on; None for any.
        devices: Devices that it runs on; None for any.
        unsupported: The argument that it cannot honour, or None.
        preferred: Whether it is to be taken where it is supported.
        holds_scores: Whether it holds (T, S) logits.
    """

    name: str
    implementation: str
    run: Run
    because: str
    backends: tuple[str, ...] | None = None
    devices: tuple[str, ...] | None = None
    unsupported: Unsupported = lambda inputs: None
    preferred: Preferred = lambda inputs, block_size: True
    holds_scores: bool = False


def _imported(module: str, function: str) -> Callable[..., Any]:
    """A function of `kernels/`, imported at its first call: no backend loads another's."""
    path = f"kerasattention.attend.kernels.{module}"

    def call(*args: Any) -> Any:
        return getattr(importlib.import_module(path), function)(*args)

    return call


def _is_small(inputs: AttentionInputs, block_size: int | None) -> bool:
    length, keys = inputs.query.shape[3], inputs.key.shape[2]
    if is_static(length) and length <= FEW_QUERIES:
        return True
    if not is_static(length, keys):
        # TensorFlow's loop decides when it runs; JAX traces unknown lengths only to export.
        return keras.backend.backend() != "tensorflow"
    return length * keys <= PLAIN_LOGITS


def _wants_shapes_only(inputs: AttentionInputs) -> bool:
    """Whether Keras traces a user's layer for the shape of its output, sizes of it unknown.

    Nothing is computed then, and on JAX no kernel with blocks takes sizes that are not known.
    """
    return in_symbolic_scope() and not is_static(*inputs.query.shape, *inputs.key.shape)


PLAIN = Kernel(
    "plain",
    "plain",
    _imported("plain", "plain_attention"),
    "up to 512 x 512 logits stay in cache, and one product has the least to call",
    preferred=_is_small,
    holds_scores=True,
)

KERNELS = (
    Kernel(
        "torch.sdpa",
        "fused",
        _imported("torch.sdpa", "sdpa_attention"),
        "torch's own function and gradient: the least overhead where one call does all, and the "
        "only fused kernel off the CPU; no cap, dropout, sink or trained bias",
        backends=("torch",),
        unsupported=_imported("torch.sdpa", "unsupported"),
        preferred=_imported("torch.sdpa", "is_preferred"),
    ),
    Kernel(
        "torch.cpu_flash",
        "fused",
        _imported("torch.cpu_flash", "cpu_flash_attention"),
        "never holds the logits and is faster than tiles; any mask; no cap, dropout, trained bias",
        backends=("torch",),
        devices=("cpu",),
        unsupported=_imported("torch.calls", "unsupported"),
    ),
    Kernel(
        "jax.cudnn",
        "fused",
        _imported("jax.cudnn", "cudnn_attention"),
        "writes no logits to memory; on CUDA, in low precision, causal rule and window only; not "
        "yet measured",
        backends=("jax",),
        unsupported=_imported("jax.cudnn", "unsupported"),
    ),
    PLAIN,
    Kernel(
        "torch.tiled",
        "blocked",
        _imported("torch.tiled", "tiled_attention"),
        "linear in T, and every option: tiles changed in place",
        backends=("torch",),
    ),
    Kernel(
        "jax.tiled",
        "blocked",
        _imported("jax.tiled", "tiled_attention"),
        "linear in T, and every option; causal T = 4096 takes less than half of Keras's time",
        backends=("jax",),
        devices=("cpu",),
    ),
    Kernel(
        "tensorflow.unrolled",
        "blocked",
        _imported("tensorflow.unrolled", "unrolled_attention"),
        "linear in T, and every option, where lengths are known and blocks are few",
        backends=("tensorflow",),
        preferred=_imported("tensorflow.unrolled", "is_preferred"),
    ),
    Kernel(
        "tensorflow.loop",
        "blocked",
        _imported("tensorflow.loop", "looped_attention"),
        "any length, known or not",
        backends=("tensorflow",),
    ),
    Kernel(
        "blocked",
        "blocked",
        _imported("blocked", "blocked_attention"),
        "linear in T, and every option, on any backend and device",
    ),
)

IMPLEMENTATIONS = ("blocked", "fused", "plain")


def select_kernel(
    inputs: AttentionInputs,
    implementation: str | Kernel | None = None,
    never_hold_scores: bool = False,
    block_size: int | None = None,
) -> Kernel:
    """The first row of the table that fits.

    Args:
        inputs: What is to be computed.
        implementation: Only rows of this implementation; None for all. A kernel is taken as it is.
        never_hold_scores: Leaves out kernels that hold (T, S) logits.
        block_size: Queries of a block; None for the kernel's own choice.

    Raises:
        ValueError: An implementation that does not exist, or an argument that none of its
            kernels honours.
    """
    if isinstance(implementation, Kernel):
        return implementation
    if implementation == "plain":
        return PLAIN
    if implementation not in (None, *IMPLEMENTATIONS):
        raise ValueError(
            f"`implementation` must be one of {list(IMPLEMENTATIONS)} or None. "
            f"Received: {implementation!r}"
        )
    if _wants_shapes_only(inputs):
        return PLAIN
    reason = None
    for kernel in _rows(inputs, implementation, never_hold_scores):
        if kernel.implementation == "blocked" and 0 in (
            inputs.query.shape[3],
            inputs.key.shape[2],
        ):
            return PLAIN  # without queries or keys there is nothing to divide into blocks
        found = kernel.unsupported(inputs)
        if found is None and kernel.preferred(inputs, block_size):
            return kernel
        reason = found or reason
    backend = keras.backend.backend()
    raise ValueError(
        f'`implementation="{implementation}"` computes attention with a kernel of the backend, '
        f"and none honours {reason or f'the backend ({backend} has no kernel)'}. "
        'Use `implementation="blocked"` or None.'
    )


def _rows(
    inputs: AttentionInputs, implementation: str | None, never_hold_scores: bool
) -> Iterator[Kernel]:
    """The rows for this backend and device."""
    backend = keras.backend.backend()
    for kernel in KERNELS:
        if kernel.backends is not None and backend not in kernel.backends:
            continue
        if implementation is not None and kernel.implementation != implementation:
            continue
        if never_hold_scores and kernel.holds_scores:
            continue
        if kernel.devices is None or _device(inputs, backend) in kernel.devices:
            yield kernel


def _device(inputs: AttentionInputs, backend: str) -> str:
    if backend == "torch":
        return inputs.query.device.type
    if backend == "jax":
        import jax

        return jax.default_backend()
    return "cpu"
