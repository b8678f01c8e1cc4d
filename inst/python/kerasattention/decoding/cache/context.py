"""The context in which attention layers use their KV caches.

It has more than 300 lines because all that a step does with one cache stands in one class.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from keras import ops

from kerasattention.attend.mask import AttentionMask
from kerasattention.attend.rules import MaskRule
from kerasattention.attend.tensors import Span, Tensor
from kerasattention.decoding.cache.spec import (
    SLOT_AXES,
    CacheSpec,
    from_cache,
    latest_positions,
    to_cache,
)
from kerasattention.decoding.cache.storage import CacheStorage
from kerasattention.layers.attention import AttentionLayer
from kerasattention.layers.context import AttentionContext

CrossKV = dict[int, tuple[Tensor, Tensor]]


@dataclasses.dataclass(frozen=True)
class StepInfo:
    """Where the tokens of one run are in their sequences.

    Attributes:
        position: Cache position, the index of the first token: an int or int32 scalar.
        count: The number of real tokens; the others follow them. None: all are real.
        is_prefill: Whether nothing is cached yet, so that the tokens attend only each other.
        padding: None, or (B): the number of padding tokens at the start of each row.
    """

    position: Any = 0
    count: Any = None
    is_prefill: bool = True
    padding: Tensor | None = None

    def last(self, length: int) -> Any:
        """Index of the last real one among `length` tokens."""
        return (length if self.count is None else self.count) - 1


class CacheContext(AttentionContext):
    """Gives each call of an attention layer its KV cache, in order of calls.

    Args:
        specs: The caches of each call.
        storage: The arrays.
        info: Where the tokens are in their sequences.
        cross_kv: Keys and values of cross-attention calls in the layout of a cache, by call;
            filled at prefill.
        length: t, the number of tokens in the run.
        max_length: The number of slots without a window.
    """

    def __init__(
        self,
        specs: tuple[CacheSpec, ...],
        storage: CacheStorage,
        info: StepInfo,
        cross_kv: CrossKV,
        *,
        length: int,
        max_length: int,
    ) -> None:
        self.specs, self.storage, self.info, self.cross_kv = specs, storage, info, cross_kv
        self.length, self.max_length = length, max_length
        self._call = -1
        # What each call held in this run, for those that use its keys and values.
        self._held: dict[int, tuple[dict[str, Tensor], Tensor | None]] = {}
        self._has_mask: dict[int, bool] = {}  # whether a call's keys carry a mask of padding
        self._shared: dict[Any, Tensor] = {}  # masks and positions that layers have in common

    def adds_one_token(self) -> bool:
        return self.length == 1 and not self.info.is_prefill

    def extends_cache(self) -> bool:
        return not self.info.is_prefill

    def pads_tokens(self) -> bool:
        return True

    def project(
        self,
        layer: AttentionLayer,
        self_attention: bool,
        compute: Callable[[], tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, Tensor]:
        self._call += 1
        if not self.specs[self._call].cross:
            return compute()
        if self.info.is_prefill:
            key, value = compute()
            self.cross_kv[self._call] = (to_cache("key", key), to_cache("value", value))
            return key, value
        key, value = self.cross_kv[self._call]
        return self._from_cache("key", key), self._from_cache("value", value)

    def set_positions(
        self, layer: AttentionLayer, mask: AttentionMask, self_attention: bool
    ) -> AttentionMask:
        spec, info = self.specs[self._call], self.info
        if mask.query_positions is not None or (info.padding is None and info.is_prefill):
            return mask
        if not layer.uses_positions and not spec.cross:
            return mask
        queries = self._indices()  # (t)
        if info.padding is not None:
            queries = queries[None] - info.padding[:, None]  # (B, t)
        keys = mask.key_positions if spec.cross else queries
        return dataclasses.replace(mask, query_positions=queries, key_positions=keys)

    def update_cache(
        self,
        layer: AttentionLayer,
        key: Tensor,
        value: Tensor,
        mask: AttentionMask,
        self_attention: bool,
    ) -> tuple[Tensor, Tensor, AttentionMask]:
        spec = self.specs[self._call]
        if spec.cross:
            # The layer keeps non-finite padding out of its keys.
            finite = not self.info.is_prefill
            return key, value, dataclasses.replace(mask, masked_out_is_finite=finite)
        given = {"key": key, "value": value}
        kept = {name: self._without_padding(given[name]) for name in spec.sizes}
        new = {name: to_cache(name, x) for name, x in kept.items()}
        keeps_mask = self._check_mask(layer, mask)
        if keeps_mask and spec.shares_with is None:
            new["mask"] = self._kept_mask(spec, key, mask)
        if spec.position_dtype is not None:
            new["positions"] = mask.key_positions
        if self.info.is_prefill:
            for name, x in new.items() if spec.shares_with is None else ():
                self._fill(name, x)
            return kept["key"], kept.get("value", kept["key"]), self._mask_padding(mask)
        if spec.shares_with is None:
            self._held[self._call] = self._append(new)
        held, positions = self._held[self._source]
        kept = {name: self._from_cache(name, held[name]) for name in spec.sizes}
        key, value = kept["key"], kept.get("value", kept["key"])
        if spec.position_dtype is not None:
            return key, value, self._with_given_positions(spec, mask, held, keeps_mask)
        mask = dataclasses.replace(
            mask,
            causal=False,
            window=None,
            further_rules=(),
            offset=self.info.position,
            query_positions=None,
            key_positions=positions,
            key_mask=held.get("mask") if keeps_mask else None,
            mask=self._mask(spec, positions, mask.further_rules),
            # One token attends all real ones of its segment that no rule masks out; of several, the
            # first may not attend the last.
            masked_out_is_finite=self.length == 1 and not mask.further_rules and not spec.segmented,
        )
        return key, value, mask

    def _with_given_positions(
        self, spec: CacheSpec, mask: AttentionMask, held: dict[str, Tensor], keeps_mask: bool
    ) -> AttentionMask:
        """The rules compare the positions given; which slots hold a key, indices say."""
        return dataclasses.replace(
            mask,
            key_positions=held["positions"],
            key_mask=held.get("mask") if keeps_mask else None,
            mask=self._mask(spec, None, ()),
        )

    def _check_mask(self, layer: AttentionLayer, mask: AttentionMask) -> bool:
        """Whether the call reads the mask in its cache, or in that of the call that it shares with.

        A spec says what may carry a mask; the call has it or not.

        Raises:
            ValueError: The call has a mask of padding that no cache holds.
        """
        spec, has_mask = self.specs[self._call], mask.key_mask is not None
        self._has_mask[self._call] = has_mask
        differs = has_mask != self._has_mask[self._source]
        if (has_mask and not spec.keeps_mask) or (differs and (has_mask or spec.segmented)):
            raise ValueError(
                f"Layer '{layer.name}' cannot be decoded token by token: its input carries a mask "
                "of padding that an earlier layer attaches in its `call()`, which the graph of the "
                "model does not show. Return the mask from `compute_mask()` of that layer."
            )
        return spec.keeps_mask and not differs

    def _kept_mask(self, spec: CacheSpec, key: Tensor, mask: AttentionMask) -> Tensor:
        """(B, S): the new keys that tokens to come may see: no padding, and of their segment."""
        real = self._all_real(key) if mask.key_mask is None else mask.key_mask  # (B, S)
        if not spec.segmented or not self.info.is_prefill:
            return real
        segments = mask.key_segments  # (B, S)
        last = ops.take(segments, self.info.last(self.length), axis=1)  # (B)
        return ops.logical_and(real, ops.equal(segments, last[:, None]))  # (B, S)

    def _all_real(self, key: Tensor) -> Tensor:
        """(B, S): the mask of keys (B, S, K, H) that turned out to have none."""
        return ops.ones(ops.shape(key)[:2], "bool")

    def _from_cache(self, name: str, x: Tensor) -> Tensor:
        return from_cache(name, x, self.specs[self._call].kv_heads)

    def _without_padding(self, x: Tensor) -> Tensor:
        """Keys or values (B, S, K, H) with zeros for padding, whose NaN must not be cached."""
        info = self.info
        padding = info.padding if info.is_prefill else None
        if self.length == 1 or (padding is None and info.count is None):
            return x
        real = self._share("real", self._real_tokens, padding)  # (B|1, S, 1, 1)
        return ops.where(real, x, ops.zeros_like(x))  # (B, S, K, H)

    def _real_tokens(self, padding: Tensor | None) -> Tensor:
        """(B|1, S, 1, 1): the tokens that are neither padding nor after the last one."""
        index = ops.arange(self.length, dtype="int32")[None, :, None, None]  # (1, S, 1, 1)
        real = index <= self.info.last(self.length)
        if padding is None:
            return real
        return ops.logical_and(real, index >= padding[:, None, None, None])  # (B, S, 1, 1)

    # Prefill --------------------------------------------------------------------

    def _fill(self, name: str, x: Tensor) -> None:
        axis, slots = SLOT_AXES[name], self._slots
        length = x.shape[axis]
        if length <= slots:
            self.storage.write(self._call, name, axis, 0, x)
            if length < slots and name != "mask":
                self.storage.clear(self._call, name, axis, length)
            return
        # Slot s takes the last real position p with p modulo W = s.
        positions = latest_positions(slots, self.info.last(length))  # (W)
        chosen = ops.take(x, ops.maximum(positions, 0), axis=axis)
        self.storage.replace(self._call, name, chosen)

    def _mask_padding(self, mask: AttentionMask) -> AttentionMask:
        """Masks out padding, which shifts a whole row: rules of distances may compare indices."""
        padding = self.info.padding
        if padding is None:
            return mask
        real = ops.arange(self.length, dtype="int32")[None] >= padding[:, None]  # (B, t)
        if mask.key_mask is not None:
            real = ops.logical_and(real, mask.key_mask)
        positions = mask.query_positions  # (B, t)
        if positions is None and not mask.is_relative:
            positions = self._indices()[None] - padding[:, None]  # (B, t)
        return dataclasses.replace(
            mask, query_positions=positions, key_positions=positions, key_mask=real
        )

    # Extending the cache --------------------------------------------------------

    def _append(self, new: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor | None]:
        """All cached keys and values, and their positions where those are not 0, 1, 2 ..."""
        position, slots = self.info.position, self._slots
        if not self._rolls:
            return self._write(new, position), None
        if self.length > 1:
            return self._append_several(new)
        positions = self._share(("latest", slots), latest_positions, slots, position)  # (W)
        return self._write(new, position % slots), positions

    def _write(self, new: dict[str, Tensor], slot: Any) -> dict[str, Tensor]:
        return {
            name: self.storage.write(self._call, name, SLOT_AXES[name], slot, x)
            for name, x in new.items()
        }

    def _append_several(self, new: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Several tokens at once: the first may attend keys that the last ones overwrite."""
        position, slots = self.info.position, self._slots
        latest = latest_positions(slots, position + self.info.last(self.length))  # (W)
        source = ops.clip(latest - position, 0, self.length - 1)  # (W)
        held = {}
        for name, x in new.items():
            axis = SLOT_AXES[name]
            old = self.storage.read(self._call, name)
            held[name] = ops.concatenate([old, x], axis=axis)  # W + t slots
            is_new = ops.reshape(latest >= position, [-1] + [1] * (-1 - axis))
            updated = ops.where(is_new, ops.take(x, source, axis=axis), old)  # W slots
            self.storage.replace(self._call, name, updated)
        before = latest_positions(slots, position - 1)  # (W)
        return held, ops.concatenate([before, self._indices()])  # (W + t)

    def _mask(
        self, spec: CacheSpec, positions: Tensor | None, rules: tuple[MaskRule, ...]
    ) -> Tensor:
        """(B|1, 1, t, S): causal, window, rules and padding; shared by all equal calls."""
        kind = ("mask", self._slots, spec.window, positions is None, rules)
        return self._share(kind, self._make_mask, spec, positions, rules)

    def _make_mask(
        self, spec: CacheSpec, positions: Tensor | None, rules: tuple[MaskRule, ...]
    ) -> Tensor:
        padding = self.info.padding
        keys = ops.arange(self._slots, dtype="int32") if positions is None else positions  # (S)
        queries = self._indices()[:, None]  # (t, 1)
        visible = keys[None] <= queries  # (t, S)
        if spec.window is not None:
            visible = ops.logical_and(visible, keys[None] > queries - spec.window)  # (t, S)
        visible = visible[None]  # (1, t, S)
        if positions is not None:
            visible = ops.logical_and(visible, keys >= 0)  # (1, t, S)
        if padding is not None:
            visible = ops.logical_and(visible, keys >= padding[:, None, None])  # (B, t, S)
        visible = visible[:, None]  # (B|1, 1, t, S)
        if not rules:
            return visible
        queries = self._indices()  # (t)
        if padding is not None:
            queries, keys = (x[None] - padding[:, None] for x in (queries, keys))  # (B, t), (B, S)
        asked = AttentionMask(query_positions=queries, key_positions=keys, further_rules=rules)
        by_rule = asked.block_mask(Span(0, self.length), Span(0, keys.shape[-1]))
        return ops.logical_and(visible, by_rule)  # (B|1, 1, t, S)

    def _indices(self) -> Tensor:
        """(t): indices of the tokens in their rows, padding included."""
        return ops.arange(self.length, dtype="int32") + self.info.position

    def _share(self, kind: Any, make: Callable[..., Tensor], *args: Any) -> Tensor:
        """A tensor that several layers share in a run."""
        if kind not in self._shared:
            self._shared[kind] = make(*args)
        return self._shared[kind]

    @property
    def _source(self) -> int:
        """The call whose arrays hold the keys and values."""
        shared = self.specs[self._call].shares_with
        return self._call if shared is None else shared

    @property
    def _slots(self) -> int:
        return self.specs[self._call].slots(self.max_length)

    @property
    def _rolls(self) -> bool:
        return self.specs[self._call].rolls(self.max_length)
