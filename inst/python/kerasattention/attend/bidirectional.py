"""Which keys a block of queries may see where spans of tokens see each other.

The rules of positions leave one range of keys, and a span adds its other tokens. The ids of a
block's queries are compared by the smallest and the largest: T operations for a block, which may
let in keys of a span between two others, and leave out none that is visible.
"""

from typing import TYPE_CHECKING, Any

import keras
from keras import ops

from kerasattention.attend.known_values import known_values
from kerasattention.attend.tensors import Span, Tensor, is_static, slice_axis

if TYPE_CHECKING:  # masks ask this module
    from kerasattention.attend.mask import AttentionMask

# Above all ids.
_MOST = 2**31 - 1


def visible_range(mask: "AttentionMask", rows: Span, length: Any) -> tuple[Tensor, Tensor]:
    """The first key that these queries may see, and the one behind the last, as tensors ().

    For positions that are indices. Without a visible key the second is not above the first.
    """
    queries = slice_axis(mask.query_bidirectional, 1, rows)  # (B, t)
    keys = mask.key_bidirectional  # (B, S)
    # With initial values, for a batch of 0.
    ids = ops.where(queries > 0, queries, _MOST)  # (B, t)
    lowest = ops.min(ids, axis=1, keepdims=True, initial=_MOST)  # (B, 1)
    highest = ops.max(queries, axis=1, keepdims=True, initial=0)  # (B, 1)
    of_span = (keys > 0) & (keys >= lowest) & (keys <= highest)  # (B, S)
    places = ops.arange(length, dtype="int32")  # (S)
    first = ops.min(ops.where(of_span, places, length), initial=length)  # ()
    stop = ops.max(ops.where(of_span, places + 1, 0), initial=0)  # ()
    reach = mask.reach_outside_spans
    before = 0 if reach.before is None else reach.first_key(rows.start)
    behind = length if reach.after is None else reach.stop_key(rows.stop - 1)
    before, behind = (ops.minimum(ops.maximum(x, 0), length) for x in (before, behind))  # (), ()
    return ops.minimum(first, before), ops.maximum(stop, behind)


def known_range(mask: "AttentionMask", rows: Span, length: Any) -> Span | None:
    """`visible_range()` as numbers, or None where reading the ids would be impossible or slow."""
    ids = known_values(mask.query_bidirectional)
    backend = keras.backend.backend()
    # JAX compiles its loops, which take tensors. An accelerator would have to be waited for.
    if ids is None or backend == "jax" or not is_static(*rows, length) or not length:
        return None
    if backend == "torch" and ids.device.type != "cpu":
        return None
    try:
        first, stop = (int(x) for x in visible_range(mask, rows, length))
    except RuntimeError:  # no number on torch: a fake tensor, or torch.func.vmap()
        return None
    return Span(first, max(stop - first, 0))
