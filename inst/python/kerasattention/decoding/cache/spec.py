"""The arrays that one call of an attention layer caches, and their layout.

Values are stored as (B, K, S, H), keys too or, on JAX, as (B, K, H, S): in these layouts few
queries are multiplied with all keys of a head fastest. An axis B or K of size 1 is left out: XLA
drops such an axis in its products, and then copies a cache that has it. A layer takes both as
(B, S, K, H). A self-attention has S = `max_length` slots, or W with a sliding window of W: the
key of position p is in slot p modulo W then. A cross-attention keeps the keys and values that it
computed at prefill. Where the values are the keys, as in latent attention, there is one array.
"""

import dataclasses
from typing import Any

import keras
from keras import ops

from kerasattention.attend.tensors import Axes, Tensor
from kerasattention.masks.base import Mask

# XLA on CPU reads a key in half the time where the sum over H is not the last axis.
_KEYS_LAST = keras.backend.backend() == "jax"
# The axis of the slots.
SLOT_AXES = {"key": -1 if _KEYS_LAST else -2, "value": -2, "mask": -1, "positions": -1}


@dataclasses.dataclass(frozen=True)
class CacheSpec:
    """What one call of an attention layer caches.

    Attributes:
        layer: Name of the layer.
        kv_heads: K.
        key_size: H.
        value_size: Hv; None where the values are the keys, which are cached once.
        dtype: Of keys and values.
        window: W of its sliding window, or of a rule that limits the distance likewise, or None.
        cross: Whether keys and values come from elsewhere than the tokens.
        masked: Whether its keys carry a Keras mask, which is then kept too.
        segmented: Whether its prompt has segments: which keys belong to the last one is kept.
        mask: The layer's rule of positions, or None.
        lookahead: The number of first tokens that may see later ones, which a prompt must have.
        least_step: How far the positions of new tokens must be behind those before.
        key_axes: The axes of a mesh of devices that split K.
        longest: The longest sequence in which cached keys keep their rotation, or None.
        position_dtype: Of the positions that are given for each token, which are then kept; or
            None.
        shares_with: Index of the call whose keys and values it uses, which has the arrays; None
            for its own.
    """

    layer: str
    kv_heads: int
    key_size: int
    value_size: int | None
    dtype: str
    window: int | None
    cross: bool
    masked: bool
    mask: Mask | None = None
    lookahead: int = 0
    least_step: int = 0
    key_axes: tuple[str, ...] = ()
    longest: int | None = None
    segmented: bool = False
    position_dtype: str | None = None
    shares_with: int | None = None

    @property
    def keeps_mask(self) -> bool:
        """Whether it keeps which keys the tokens to come may see."""
        return self.masked or self.segmented

    @property
    def sizes(self) -> dict[str, int]:
        """The arrays that hold its keys and values, and the size of a head in each."""
        keys = {"key": self.key_size}
        return keys if self.value_size is None else keys | {"value": self.value_size}

    def slots(self, max_length: int) -> int:
        """S."""
        return max_length if self.window is None else min(self.window, max_length)

    def rolls(self, max_length: int) -> bool:
        """Whether slots are used again, so that the cache is never full."""
        return self.window is not None and self.window <= max_length

    def shapes(self, batch: int, max_length: int) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype of each array it keeps."""
        if self.cross or self.shares_with is not None:
            return {}
        slots = self.slots(max_length)
        arrays = {
            name: (_shape(name, batch, self.kv_heads, slots, size), self.dtype)
            for name, size in self.sizes.items()
        }
        if self.position_dtype is not None:
            arrays["positions"] = ((batch, slots), self.position_dtype)
        return arrays | ({"mask": ((batch, slots), "bool")} if self.keeps_mask else {})

    def axes(self, name: str, batch: int) -> Axes:
        """What the axes of an array count."""
        if name in ("mask", "positions"):
            return ("batch", None)
        sizes = {"batch": batch, "key_heads": self.kv_heads}
        return (*(axis for axis, size in sizes.items() if size != 1), None, None)


def to_cache(name: str, x: Tensor) -> Tensor:
    """Keys or values (B, S, K, H) in the layout of a cache."""
    x = ops.transpose(x, (0, 2, 3, 1) if SLOT_AXES[name] == -1 else (0, 2, 1, 3))
    return ops.reshape(x, (*_without_ones(*x.shape[:2]), *x.shape[2:]))


def from_cache(name: str, x: Tensor, kv_heads: int) -> Tensor:
    """Keys or values in the layout of a cache as (B, S, K, H)."""
    x = ops.reshape(x, (-1, kv_heads, *x.shape[-2:]))
    return ops.transpose(x, (0, 3, 1, 2) if SLOT_AXES[name] == -1 else (0, 2, 1, 3))


def latest_positions(slots: int, last: Any) -> Tensor:
    """(S): the position that each slot holds when `last` is the latest; < 0 where none."""
    slot = ops.arange(slots, dtype="int32")  # (S)
    return last - (last - slot) % slots  # (S)


def _shape(name: str, batch: int, kv_heads: int, slots: int, size: int) -> tuple[int, ...]:
    last = (size, slots) if SLOT_AXES[name] == -1 else (slots, size)
    return (*_without_ones(batch, kv_heads), *last)


def _without_ones(*sizes: int) -> tuple[int, ...]:
    return tuple(size for size in sizes if size != 1)
