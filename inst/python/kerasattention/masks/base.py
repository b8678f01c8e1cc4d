"""`Mask`: a rule of positions that users can combine, save and print."""

import dataclasses
import functools
from collections.abc import Hashable
from typing import Any

import keras
from keras import ops

from kerasattention.attend import intervals
from kerasattention.attend.intervals import Intervals
from kerasattention.attend.rules import MaskRule, Positions, Reach
from kerasattention.attend.tensors import Columns, Span, Tensor


class Mask(MaskRule):
    """A condition under which a query attends a key, by their positions.

    Masks are combined with `&` (both), `|` (either) and `~` (not). They are hashable and equal
    where they were made from equal arguments.
    """

    argument = "mask"

    def __and__(self, other: Any) -> "Mask":
        return _combined(AndMask, self, other)

    def __or__(self, other: Any) -> "Mask":
        return _combined(OrMask, self, other)

    def __invert__(self) -> "Mask":
        return NotMask(self)

    def __bool__(self) -> bool:
        raise TypeError(
            "A mask is neither true nor false. Combine masks with `&`, `|` and `~`, not with "
            "`and`, `or` and `not`."
        )

    def check_lengths(self, queries: int, keys: int) -> None:
        """Refuses more queries or keys than the mask says anything about."""

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # pyright: ignore[reportArgumentType]

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Mask":
        return cls(**config)

    def __repr__(self) -> str:
        options = ", ".join(repr(value) for value in self.get_config().values())
        return f"{type(self).__name__}({options})"


@dataclasses.dataclass(frozen=True, repr=False)
class _Combined(Mask):
    """Several masks as one."""

    masks: tuple[Mask, ...]

    operator = ""

    def __post_init__(self) -> None:
        if not self.masks or not all(isinstance(mask, Mask) for mask in self.masks):
            raise ValueError(f"`masks` must be masks. Received: masks={self.masks!r}")

    @property
    def is_relative(self) -> bool:
        return all(mask.is_relative for mask in self.masks)

    def check_lengths(self, queries: int, keys: int) -> None:
        for mask in self.masks:
            mask.check_lengths(queries, keys)

    def signature(self, first: int, last: int, start: int, stop: int) -> Hashable:
        return tuple(mask.signature(first, last, start, stop) for mask in self.masks)

    def get_config(self) -> dict[str, Any]:
        return {"masks": [keras.saving.serialize_keras_object(mask) for mask in self.masks]}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Mask":
        return cls(tuple(map(as_mask_object, config["masks"])))

    def __repr__(self) -> str:
        return f" {self.operator} ".join(
            f"({mask!r})" if isinstance(mask, _Combined) else repr(mask) for mask in self.masks
        )


@keras.saving.register_keras_serializable(package="kerasattention")
@dataclasses.dataclass(frozen=True, repr=False)
class AndMask(_Combined):
    """Visible where all of the masks say so."""

    operator = "&"

    @property
    def reach(self) -> Reach:
        befores = [m.reach.before for m in self.masks if m.reach.before is not None]
        afters = [m.reach.after for m in self.masks if m.reach.after is not None]
        return Reach(min(befores, default=None), min(afters, default=None))

    @property
    def is_band(self) -> bool:
        return all(mask.is_band for mask in self.masks)

    @property
    def lookahead(self) -> int | None:
        return min((m.lookahead for m in self.masks if m.lookahead is not None), default=None)

    @property
    def is_exact(self) -> bool:
        return any(m.is_exact and m.lookahead == self.lookahead for m in self.masks)

    def visible_keys(self, first: int, last: int) -> Intervals:
        found = (mask.visible_keys(first, last) for mask in self.masks)
        return functools.reduce(intervals.intersection, found)

    def certain_keys(self, first: int, last: int) -> Intervals:
        found = (mask.certain_keys(first, last) for mask in self.masks)
        return functools.reduce(intervals.intersection, found)

    def block_mask(self, positions: Positions, rows: Span, columns: Columns) -> Tensor:
        found = (mask.block_mask(positions, rows, columns) for mask in self.masks)
        return functools.reduce(ops.logical_and, found)  # (B|1, 1, t|1, s|1)


@keras.saving.register_keras_serializable(package="kerasattention")
@dataclasses.dataclass(frozen=True, repr=False)
class OrMask(_Combined):
    """Visible where one of the masks says so."""

    operator = "|"

    @property
    def reach(self) -> Reach:
        befores = [mask.reach.before for mask in self.masks]
        afters = [mask.reach.after for mask in self.masks]
        return Reach(_largest(befores), _largest(afters))

    @property
    def lookahead(self) -> int | None:
        return _largest([mask.lookahead for mask in self.masks])

    @property
    def is_exact(self) -> bool:
        return all(mask.is_exact for mask in self.masks)

    def visible_keys(self, first: int, last: int) -> Intervals:
        found = (mask.visible_keys(first, last) for mask in self.masks)
        return functools.reduce(intervals.union, found)

    def certain_keys(self, first: int, last: int) -> Intervals:
        found = (mask.certain_keys(first, last) for mask in self.masks)
        return functools.reduce(intervals.union, found)

    def block_mask(self, positions: Positions, rows: Span, columns: Columns) -> Tensor:
        found = (mask.block_mask(positions, rows, columns) for mask in self.masks)
        return functools.reduce(ops.logical_or, found)  # (B|1, 1, t|1, s|1)


@keras.saving.register_keras_serializable(package="kerasattention")
@dataclasses.dataclass(frozen=True, repr=False)
class NotMask(Mask):
    """Visible where a mask says that it is not."""

    mask: Mask

    def __post_init__(self) -> None:
        if not isinstance(self.mask, Mask):
            raise ValueError(f"`mask` must be a mask. Received: mask={self.mask!r}")

    def __invert__(self) -> Mask:
        return self.mask

    @property
    def is_relative(self) -> bool:
        return self.mask.is_relative

    def check_lengths(self, queries: int, keys: int) -> None:
        self.mask.check_lengths(queries, keys)

    def visible_keys(self, first: int, last: int) -> Intervals:
        return intervals.complement(self.mask.certain_keys(first, last))

    def certain_keys(self, first: int, last: int) -> Intervals:
        return intervals.complement(self.mask.visible_keys(first, last))

    def block_mask(self, positions: Positions, rows: Span, columns: Columns) -> Tensor:
        return ops.logical_not(self.mask.block_mask(positions, rows, columns))  # as the mask's

    def signature(self, first: int, last: int, start: int, stop: int) -> Hashable:
        return self.mask.signature(first, last, start, stop)

    def get_config(self) -> dict[str, Any]:
        return {"mask": keras.saving.serialize_keras_object(self.mask)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Mask":
        return cls(as_mask_object(config["mask"]))

    def __repr__(self) -> str:
        return f"~({self.mask!r})" if isinstance(self.mask, _Combined) else f"~{self.mask!r}"


def as_mask_object(given: Any) -> Any:
    """The mask that a config describes; other values as they are."""
    if isinstance(given, dict):
        return keras.saving.deserialize_keras_object(given)
    return given


def as_mask(name: str, value: Any) -> Mask | None:
    """None, a mask, or the one that a config describes, for a layer's argument."""
    mask = as_mask_object(value)
    if mask is not None and not isinstance(mask, Mask):
        raise ValueError(
            f"`{name}` must be `None` or a mask such as `CausalMask()`; a tensor is the call "
            f"argument `attention_mask`. Received: {name}={value!r}"
        )
    return mask


def conjuncts(mask: Mask | None) -> tuple[Mask, ...]:
    """The masks all of which must say that a key is visible."""
    if mask is None:
        return ()
    return mask.masks if isinstance(mask, AndMask) else (mask,)


def _combined(kind: type[_Combined], first: Mask, second: Any) -> Mask:
    """The masks as one, those of the same operator in one row, each once."""
    if not isinstance(second, Mask):
        return NotImplemented
    parts: list[Mask] = []
    for mask in (first, second):
        parts += mask.masks if isinstance(mask, kind) else (mask,)
    distinct = tuple(dict.fromkeys(parts))
    return first if distinct == (first,) else kind(distinct)


def _largest(numbers: list[int | None]) -> int | None:
    """The largest number, None being larger than all."""
    known = [number for number in numbers if number is not None]
    return max(known) if len(known) == len(numbers) else None
