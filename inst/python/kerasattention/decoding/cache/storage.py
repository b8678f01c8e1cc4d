"""The arrays of the caches, and how each backend writes into them.

A cache is written once per layer and token: an update that copies the whole
array would cost as much as attention itself.
"""

import math
import os
from typing import Any, Protocol

from keras import ops

from kerasattention.attend.tensors import Tensor
from kerasattention.decoding.cache.spec import CacheSpec

# Token ids and indices are int32 in all backends.
MOST_IDS = 2**31 - 1

Arrays = list[dict[str, Tensor]]


def _shapes(
    specs: tuple[CacheSpec, ...], batch: int, max_length: int
) -> list[dict[str, tuple[tuple[int, ...], str]]]:
    return [spec.shapes(batch, max_length) for spec in specs]


class CacheStorage(Protocol):
    """The arrays of the caches. Each backend writes in place by other means."""

    def read(self, call: int, name: str) -> Tensor:
        """The whole array of a call."""
        ...

    def write(self, call: int, name: str, axis: int, start: Any, x: Tensor) -> Tensor:
        """Puts x at index `start` of an axis; returns the whole array."""
        ...

    def replace(self, call: int, name: str, x: Tensor) -> None:
        """Replaces the whole array by x."""

    def clear(self, call: int, name: str, axis: int, start: int) -> None:
        """Writes zeros from index `start` on, where an earlier sequence may have left NaN."""


class ArrayStorage:
    """Arrays that are replaced by updated ones; a compiler may update them in place."""

    def __init__(self, arrays: Arrays) -> None:
        self.arrays = [dict(x) for x in arrays]

    @classmethod
    def allocate(cls, specs: tuple[CacheSpec, ...], batch: int, max_length: int) -> "ArrayStorage":
        return cls(
            [
                {name: ops.zeros(shape, dtype) for name, (shape, dtype) in arrays.items()}
                for arrays in _shapes(specs, batch, max_length)
            ]
        )

    def read(self, call: int, name: str) -> Tensor:
        return self.arrays[call][name]

    def write(self, call: int, name: str, axis: int, start: Any, x: Tensor) -> Tensor:
        whole = self.arrays[call][name]
        starts: list[Any] = [0] * len(whole.shape)
        starts[axis] = start
        whole = ops.slice_update(whole, starts, x)
        self.arrays[call][name] = whole
        return whole

    def replace(self, call: int, name: str, x: Tensor) -> None:
        self.arrays[call][name] = x

    def clear(self, call: int, name: str, axis: int, start: int) -> None:
        """Nothing to do: each sequence begins with new arrays."""


class VariableStorage:
    """TensorFlow variables: a strided assignment writes in place."""

    def __init__(self, specs: tuple[CacheSpec, ...], batch: int, max_length: int) -> None:
        import tensorflow as tf

        self.variables = [
            {
                name: tf.Variable(tf.zeros(shape, dtype), trainable=False)
                for name, (shape, dtype) in arrays.items()
            }
            for arrays in _shapes(specs, batch, max_length)
        ]

    def read(self, call: int, name: str) -> Tensor:
        return self.variables[call][name].value()

    def write(self, call: int, name: str, axis: int, start: Any, x: Tensor) -> Tensor:
        variable = self.variables[call][name]
        index = [slice(None)] * len(variable.shape)
        index[axis] = slice(start, start + x.shape[axis])
        variable[tuple(index)].assign(x)
        return variable.value()

    def replace(self, call: int, name: str, x: Tensor) -> None:
        self.variables[call][name].assign(x)

    def clear(self, call: int, name: str, axis: int, start: int) -> None:
        variable = self.variables[call][name]
        index = [slice(None)] * len(variable.shape)
        index[axis] = slice(start, None)
        variable[tuple(index)].assign(ops.zeros_like(variable.value()[tuple(index)]))


class TensorStorage:
    """torch tensors, written in place."""

    def __init__(self, specs: tuple[CacheSpec, ...], batch: int, max_length: int) -> None:
        self.tensors = ArrayStorage.allocate(specs, batch, max_length).arrays

    def read(self, call: int, name: str) -> Tensor:
        return self.tensors[call][name]

    def write(self, call: int, name: str, axis: int, start: Any, x: Tensor) -> Tensor:
        whole = self.tensors[call][name]
        if isinstance(start, int):
            whole.narrow(axis, start, x.shape[axis]).copy_(x)
        else:
            index = ops.arange(x.shape[axis], dtype="int64") + start
            whole.index_copy_(axis, index, x.to(whole.dtype))
        return whole

    def replace(self, call: int, name: str, x: Tensor) -> None:
        self.tensors[call][name].copy_(x)

    def clear(self, call: int, name: str, axis: int, start: int) -> None:
        whole = self.tensors[call][name]
        whole.narrow(axis, start, whole.shape[axis] - start).zero_()


def cache_bytes(specs: tuple[CacheSpec, ...], batch: int, max_length: int) -> int:
    """Bytes of all caches of self-attention."""
    return sum(
        math.prod(shape) * _WIDTHS[dtype]
        for arrays in _shapes(specs, batch, max_length)
        for shape, dtype in arrays.values()
    )


def check_memory(size: int, rows: int, length: int) -> None:
    """Refuses caches that no memory of this machine could hold, before any is allocated."""
    most = _memory_size()
    if length > MOST_IDS or size > most:
        raise LengthError(
            f"`batch_size` = {rows} rows of `max_length` = {length} tokens "
            f"need {size / 2**30:.3g} GiB of caches, more than the {most / 2**30:.3g} GiB of "
            "memory that there are. Ask for fewer rows or fewer tokens."
        )


class LengthError(ValueError):
    """More tokens or rows than a model or a machine can take."""


def _memory_size() -> int:
    """Bytes of memory of this machine."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not known on every system
        return 2**40


_WIDTHS = {"bool": 1, "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
_WIDTHS |= {"int32": 4, "int64": 8}
