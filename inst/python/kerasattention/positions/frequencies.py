"""Frequencies of rotary positions, some of which depend on the length of the sequence."""

import dataclasses
from typing import NamedTuple, Protocol

import numpy as np
from keras import ops

from kerasattention.attend.tensors import Tensor, tensor_of


class ByLength(Protocol):
    """Frequencies of sequences that are longer than those that the model was trained on.

    Attributes:
        original: The length up to which the frequencies are the same for all sequences.
    """

    @property
    def original(self) -> int: ...

    def of_length(self, values: np.ndarray, length: Tensor) -> Tensor:
        """(..., R / 2) of lengths (..., 1), in their dtype; `values` are those up to `original`."""
        ...


class Frequencies(NamedTuple):
    """One frequency per pair of features, and the factor of cosine and sine."""

    values: np.ndarray  # (R / 2), radians per position
    attention_factor: float = 1.0
    by_length: ByLength | None = None

    def in_dtype(self, dtype: str, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        """(R / 2), or (B|1, 1, R / 2) where they depend on the length of each sequence."""
        values = self.values.astype(dtype)  # (R / 2)
        if self.by_length is None:
            return values
        length = _length_of(query_positions, dtype)  # (B|1, 1, 1)
        if key_positions is not query_positions:
            length = _longer(length, _length_of(key_positions, dtype))  # (B|1, 1, 1)
        return self.by_length.of_length(values, length)  # (B|1, 1, R / 2)


def _length_of(positions: Tensor, dtype: str) -> Tensor:
    """The largest position of each sequence plus one: (B|1, 1, 1)."""
    axes = (0,) if len(positions.shape) == 1 else tuple(range(1, len(positions.shape)))
    last = ops.max(positions, axis=axes, initial=0)  # () or (B)
    return ops.reshape(ops.cast(last, dtype) + 1.0, (-1, 1, 1))  # (B|1, 1, 1)


def _longer(length: Tensor, other: Tensor) -> Tensor:
    """Not `ops.maximum()`, which gives float32 for float64 on torch."""
    return ops.where(length > other, length, other)  # (B|1, 1, 1)


@dataclasses.dataclass(frozen=True)
class LongFrequencies:
    """Other frequencies for all sequences that are longer than `original` (LongRoPE)."""

    original: int
    values: tuple[float, ...]

    def of_length(self, values: np.ndarray, length: Tensor) -> Tensor:
        long = np.array(self.values, dtype=values.dtype)  # (R / 2)
        return ops.where(length > self.original, long, values)  # (B|1, 1, R / 2)


@dataclasses.dataclass(frozen=True)
class DynamicFrequencies:
    """A base that grows with the length beyond `original` (dynamic NTK)."""

    original: int
    factor: float

    def of_length(self, values: np.ndarray, length: Tensor) -> Tensor:
        longer = _longer(length, ops.full_like(length, self.original))  # (B|1, 1, 1)
        growth = dynamic_growth(longer, self.factor, self.original)  # (B|1, 1, 1)
        exponents = dynamic_exponents(2 * len(values)).astype(values.dtype)  # (R / 2)
        # Not `ops.power()` and `multiply()`, which give float32 for float64 on torch (Keras 3.16).
        return growth ** tensor_of(exponents) * tensor_of(values)  # (B|1, 1, R / 2)


def dynamic_growth(length: Tensor | float, factor: float, original: int) -> Tensor | float:
    """By how much a length beyond the original one stretches the slowest pair."""
    return length * (factor / original) - (factor - 1.0)


def dynamic_exponents(size: int) -> np.ndarray:
    """(R / 2): a base theta * growth^(R / (R - 2)) multiplies each frequency by growth^exponent."""
    return -np.arange(0, size, 2, dtype=np.float64) / max(size - 2, 1)  # (R / 2)
