"""The key/value caches of attention layers, and the context that lends them.

Values lie as (B, K, S, H), keys so too or, on JAX, as (B, K, H, S): the layouts in which few
queries are multiplied with all keys of a head fastest. B or K of 1 is left out: XLA drops such
an axis in its products, and then copies a cache that has it. A layer sees both as
(B, S, K, H). A self-attention has
S = `max_length` slots, or W with a sliding window of W: the key of position p
lies in slot p modulo W then. A cross-attention keeps what it computed for the
prompt.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import keras
from keras import ops

from kerasattention.attend.mask import AttentionMask
from kerasattention.attend.tensors import Tensor
from kerasattention.layers.attention import AttentionLayer
from kerasattention.layers.context import AttentionContext


@dataclasses.dataclass(frozen=True)
class CacheSpec:
    """What one call of an attention layer keeps.

    Attributes:
        layer: Name of the layer.
        kv_heads: K.
        key_size: H.
        value_size: Hv.
        dtype: Of keys and values.
        window: W of its sliding window, or None.
        cross: Whether keys and values come from elsewhere than the tokens.
        masked: Whether its keys carry a Keras mask, which is then kept too.
    """

    layer: str
    kv_heads: int
    key_size: int
    value_size: int
    dtype: str
    window: int | None
    cross: bool
    masked: bool

    def slots(self, max_length: int) -> int:
        """S."""
        return max_length if self.window is None else min(self.window, max_length)

    def rolls(self, max_length: int) -> bool:
        """Whether slots are used again, so that the cache is never full."""
        return self.window is not None and self.window <= max_length

    def shapes(self, batch: int, max_length: int) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype of each array it keeps."""
        if self.cross:
            return {}
        slots = self.slots(max_length)
        arrays = {
            "key": (_shape("key", batch, self.kv_heads, slots, self.key_size), self.dtype),
            "value": (_shape("value", batch, self.kv_heads, slots, self.value_size), self.dtype),
        }
        return arrays | ({"mask": ((batch, slots), "bool")} if self.masked else {})


@dataclasses.dataclass(frozen=True)
class Moment:
    """Where the tokens of one run stand in their sequences.

    Attributes:
        start: Index of the first token, an int or int32 scalar.
        count: How many of the tokens are real; the others follow them.
        fresh: Whether nothing is cached yet, so that the tokens see only each other.
        padding: None, or (B): how many indices at the start of each row are padding.
    """

    start: Any = 0
    count: Any = None
    fresh: bool = True
    padding: Tensor | None = None


class Memory(Protocol):
    """The arrays behind the caches; each backend has its own way to write in place."""

    def read(self, call: int, name: str) -> Tensor:
        """The whole array of a call."""

    def write(self, call: int, name: str, axis: int, start: Any, x: Tensor) -> Tensor:
        """Puts x at index `start` of an axis; gives the whole array."""

    def replace(self, call: int, name: str, x: Tensor) -> None:
        """Puts x in place of the whole array."""

    def clear(self, call: int, name: str, axis: int, start: int) -> None:
        """Zeros from index `start` of an axis on, where an earlier sequence may have left NaN."""


class CacheContext(AttentionContext):
    """Lends its cache to each call of an attention layer, in order of calls.

    Args:
        specs: What each call keeps.
        memory: The arrays.
        crossed: Keys and values of cross-attention calls as in a cache; filled
            while `moment` is fresh.
        length: Number of tokens in the run, t.
        max_length: Number of slots without a window.
        apply: How projections are computed, if not by their own calls.
    """

    def __init__(
        self,
        specs: tuple[CacheSpec, ...],
        memory: Memory,
        moment: Moment,
        crossed: dict[int, tuple[Tensor, Tensor]],
        *,
        length: int,
        max_length: int,
        apply: Callable[[Any, Tensor], Tensor] | None = None,
    ) -> None:
        self._apply = apply
        self.specs, self.memory, self.moment, self.crossed = specs, memory, moment, crossed
        self.length, self.max_length = length, max_length
        self._call = -1
        self._shared: dict[Any, Tensor] = {}  # what all layers alike need once per run

    def adds_one_token(self) -> bool:
        return self.length == 1 and not self.moment.fresh

    def apply(self, dense: keras.layers.EinsumDense, x: Tensor) -> Tensor:
        return dense(x) if self._apply is None else self._apply(dense, x)

    def project(
        self,
        layer: AttentionLayer,
        self_attention: bool,
        compute: Callable[[], tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, Tensor]:
        self._call += 1
        if not self.specs[self._call].cross:
            return compute()
        if self.moment.fresh:
            key, value = compute()
            self.crossed[self._call] = (_stored("key", key), _stored("value", value))
            return key, value
        key, value = self.crossed[self._call]
        return self._given("key", key), self._given("value", value)

    def set_positions(
        self, layer: AttentionLayer, visibility: AttentionMask, self_attention: bool
    ) -> AttentionMask:
        spec, moment = self.specs[self._call], self.moment
        if moment.padding is None and moment.fresh:
            return visibility
        if layer.position is None and not spec.cross:
            return visibility
        length = self.length
        queries = ops.arange(length, dtype="int32") + moment.start
        if moment.padding is not None:
            queries = queries[None] - moment.padding[:, None]
        keys = visibility.key_positions if spec.cross else queries
        return dataclasses.replace(visibility, query_positions=queries, key_positions=keys)

    def update_cache(
        self,
        layer: AttentionLayer,
        key: Tensor,
        value: Tensor,
        visibility: AttentionMask,
        self_attention: bool,
    ) -> tuple[Tensor, Tensor, AttentionMask]:
        spec = self.specs[self._call]
        if spec.cross:
            # A layer makes no keys of padding that are not finite.
            finite = not self.moment.fresh
            return key, value, dataclasses.replace(visibility, masked_out_is_finite=finite)
        key, value = self._without_padding(key), self._without_padding(value)
        new = {"key": _stored("key", key), "value": _stored("value", value)}
        if spec.masked:
            new["mask"] = visibility.key_mask
        if self.moment.fresh:
            for name, x in new.items():
                self._fill(name, x)
            return key, value, self._among_themselves(visibility)
        held, positions = self._exchange(spec, new)
        visibility = dataclasses.replace(
            visibility,
            causal=False,
            window=None,
            offset=self.moment.start,
            query_positions=None,
            key_positions=positions,
            key_mask=held.get("mask"),
            mask=self._mask(spec, positions),
            # One token sees all real ones; of several, the first may not see the last.
            masked_out_is_finite=self.length == 1,
        )
        key, value = (self._given(name, held[name]) for name in ("key", "value"))
        return key, value, visibility

    def _given(self, name: str, x: Tensor) -> Tensor:
        """(B, S, K, H) of what lies in a cache."""
        x = ops.reshape(x, (-1, self.specs[self._call].kv_heads, *x.shape[-2:]))
        return ops.transpose(x, (0, 3, 1, 2) if _AXES[name] == -1 else (0, 2, 1, 3))

    def _without_padding(self, x: Tensor) -> Tensor:
        """(B, S, K, H) with zeros for tokens that are not real: no NaN of theirs gets stored."""
        moment = self.moment
        padding = moment.padding if moment.fresh else None
        if self.length == 1 or (padding is None and moment.count is None):
            return x
        real = self._once("real", self._make_real, padding)
        return ops.where(real, x, ops.zeros_like(x))

    def _make_real(self, padding: Tensor | None) -> Tensor:
        """(B|1, S, 1, 1): the tokens that are neither padding nor behind the last one."""
        index = ops.arange(self.length, dtype="int32")[None, :, None, None]
        real = index <= self._last(self.length)
        if padding is None:
            return real
        return ops.logical_and(real, index >= padding[:, None, None, None])

    # A prompt into an empty cache -----------------------------------------------

    def _fill(self, name: str, x: Tensor) -> None:
        axis, slots = _AXES[name], self._slots
        length = x.shape[axis]
        if length <= slots:
            self.memory.write(self._call, name, axis, 0, x)
            if length < slots and name != "mask":
                self.memory.clear(self._call, name, axis, length)
            return
        # Slot s takes the last real position p with p modulo W = s.
        positions = latest_positions(slots, self._last(length))
        chosen = ops.take(x, ops.maximum(positions, 0), axis=axis)
        self.memory.replace(self._call, name, chosen)

    def _among_themselves(self, visibility: AttentionMask) -> AttentionMask:
        """Indices do for masks: the padding at the start of a row shifts all of it."""
        moment = self.moment
        if moment.padding is None:
            return visibility
        length = self.length
        real = ops.arange(length, dtype="int32")[None] >= moment.padding[:, None]
        if visibility.key_mask is not None:
            real = ops.logical_and(real, visibility.key_mask)
        return dataclasses.replace(
            visibility, query_positions=None, key_positions=None, key_mask=real
        )

    # Tokens after others --------------------------------------------------------

    def _exchange(
        self, spec: CacheSpec, new: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """All keys and values that the tokens may see, and their positions if not 0, 1, 2 ..."""
        moment, slots = self.moment, self._slots
        if not self._rolls:
            held = {
                name: self.memory.write(self._call, name, _AXES[name], moment.start, x)
                for name, x in new.items()
            }
            return held, None
        if self.length == 1:
            slot = moment.start % slots
            held = {
                name: self.memory.write(self._call, name, _AXES[name], slot, x)
                for name, x in new.items()
            }
            return held, self._once(("latest", slots), latest_positions, slots, moment.start)
        return self._exchange_run(new)

    def _exchange_run(self, new: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Several tokens at once: the first may see keys that the last ones overwrite."""
        moment, slots = self.moment, self._slots
        latest = latest_positions(slots, moment.start + self._last(self.length))
        source = ops.clip(latest - moment.start, 0, self.length - 1)
        seen = {}
        for name, x in new.items():
            axis = _AXES[name]
            old = self.memory.read(self._call, name)
            seen[name] = ops.concatenate([old, x], axis=axis)
            is_new = ops.reshape(latest >= moment.start, [-1] + [1] * (-1 - axis))
            taken = ops.where(is_new, ops.take(x, source, axis=axis), old)
            self.memory.replace(self._call, name, taken)
        fresh = ops.arange(self.length, dtype="int32") + moment.start
        return seen, ops.concatenate([latest_positions(slots, moment.start - 1), fresh])

    def _mask(self, spec: CacheSpec, positions: Tensor | None) -> Tensor:
        kind = ("mask", self._slots, spec.window, positions is None)
        return self._once(kind, self._make_mask, spec, positions)

    def _make_mask(self, spec: CacheSpec, positions: Tensor | None) -> Tensor:
        """(B|1, 1, t, S): causal, window and padding; one for all calls alike."""
        moment = self.moment
        keys = ops.arange(self._slots, dtype="int32") if positions is None else positions
        queries = (ops.arange(self.length, dtype="int32") + moment.start)[:, None]
        seen = keys[None] <= queries
        if spec.window is not None:
            seen = ops.logical_and(seen, keys[None] > queries - spec.window)
        seen = seen[None]
        if positions is not None:
            seen = ops.logical_and(seen, keys >= 0)
        if moment.padding is not None:
            seen = ops.logical_and(seen, keys >= moment.padding[:, None, None])
        return seen[:, None]

    def _once(self, kind: Any, make: Callable[..., Tensor], *args: Any) -> Tensor:
        if kind not in self._shared:
            self._shared[kind] = make(*args)
        return self._shared[kind]

    @property
    def _slots(self) -> int:
        return self.specs[self._call].slots(self.max_length)

    @property
    def _rolls(self) -> bool:
        return self.specs[self._call].rolls(self.max_length)

    def _last(self, length: int) -> Any:
        """Index of the last real token in a run of tokens."""
        return (length if self.moment.count is None else self.moment.count) - 1


# XLA on CPU reads a key in half the time where the sum over H is not the last axis.
_KEYS_LAST = keras.backend.backend() == "jax"
# Where the slots are.
_AXES = {"key": -1 if _KEYS_LAST else -2, "value": -2, "mask": -1}


def latest_positions(slots: int, last: Any) -> Tensor:
    """(S): the position that each slot holds when `last` is the latest; < 0 where none."""
    slot = ops.arange(slots, dtype="int32")
    return last - (last - slot) % slots


def _shape(name: str, batch: int, kv_heads: int, slots: int, size: int) -> tuple[int, ...]:
    last = (size, slots) if _AXES[name] == -1 else (slots, size)
    return (*_without_ones(batch, kv_heads), *last)


def _stored(name: str, x: Tensor) -> Tensor:
    """(B, S, K, H) as it lies in a cache."""
    x = ops.transpose(x, (0, 2, 3, 1) if _AXES[name] == -1 else (0, 2, 1, 3))
    return ops.reshape(x, (*_without_ones(*x.shape[:2]), *x.shape[2:]))


def _without_ones(*sizes: int) -> tuple[int, ...]:
    return tuple(size for size in sizes if size != 1)
