"""Products of int8 numbers, as such, while a prompt runs layer by layer.

Keras on a CPU casts both sides to int32, for which torch has no library: the product takes
longer than that of floats, and the cast of a weight takes four times its memory. Recorded steps
are rewritten instead (`int8_torch`).
"""

import contextlib
import math
import weakref
from typing import Any

import keras
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

Tensor = torch.Tensor


def int8_products(variables: list[keras.Variable]) -> contextlib.AbstractContextManager:
    """Where products of int8 numbers, some of these weights among them, are computed as such."""
    weights = [x.value for x in variables]
    weights = [x for x in weights if x.dtype == torch.int8 and x.device.type == "cpu"]
    return _Int8Products(weights) if weights else contextlib.nullcontext()


class _Int8Products(TorchFunctionMode):
    """Remembers which int32 numbers were int8 before, and multiplies those.

    Weights are not cast before something other than a product wants their numbers.
    """

    def __init__(self, weights: list[Tensor]) -> None:
        super().__init__()
        self._weights = {_memory(x) for x in weights}
        # The int8 numbers behind a tensor, by its identity, for as long as it lives.
        self._sources: dict[int, Tensor] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.to and _is_cast(*args, **kwargs):
            return self._cast(args[0])
        if not self._sources or func.__name__ == "__get__":  # the shape, dtype or device of one
            return func(*args, **kwargs)
        if func is torch.matmul:
            pair = self._behind(args)
            if pair is not None and pair[1].ndim == 2:
                return _product(*pair, axes=1)
        if func is torch.einsum:
            pair, axes = self._behind(args[1:]), summed_axes(args[0])
            if pair is not None and axes is not None:
                return _product(*pair, axes=axes)
        args, kwargs = tree_map(self._whole, (args, kwargs))
        return func(*args, **kwargs)

    def _cast(self, source: Tensor) -> Tensor:
        """int8 as int32; for a weight a stand-in of its shape, without memory for numbers."""
        if _memory(source) in self._weights:
            result = torch.empty(1, dtype=torch.int32).expand(source.shape)
        else:
            result = source.to(torch.int32)
        self._sources[id(result)] = source
        weakref.finalize(result, self._sources.pop, id(result), None)
        return result

    def _behind(self, operands: tuple[Any, ...]) -> list[Tensor] | None:
        found = [self._sources.get(id(x)) for x in operands]
        return found if len(found) == 2 and not any(x is None for x in found) else None

    def _whole(self, x: Any) -> Any:
        """What an operation other than a product is given."""
        source = self._sources.get(id(x)) if isinstance(x, Tensor) else None
        if source is None:
            return x
        if _memory(source) in self._weights:
            return source.to(torch.int32)
        del self._sources[id(x)]  # the operation may change it
        return x


def summed_axes(subscripts: str) -> int | None:
    """How many of the left side's last axes are summed with the right side's first.

    None where it is no such product, or its axes come out in another order: "btd,dnh->btnh"
    is one of 1 axis, "btnh,nhd->btd" of 2.
    """
    inputs, arrow, output = subscripts.replace(" ", "").partition("->")
    left, comma, right = inputs.partition(",")
    summed = [x for x in left if x in right]
    count = len(summed)
    if not arrow or not comma or count == 0:
        return None
    ends_meet = left.endswith(right[:count]) and right.startswith("".join(summed))
    return count if ends_meet and output == left[:-count] + right[count:] else None


def _memory(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def _is_cast(x: Any, *args: Any, **kwargs: Any) -> bool:
    wanted = args[0] if args else kwargs.get("dtype")
    return wanted is torch.int32 and x.dtype == torch.int8 and x.device.type == "cpu"


def _product(left: Tensor, right: Tensor, axes: int) -> Tensor:
    """The sums over the last axes of one and the first of the other, int32."""
    depth = math.prod(right.shape[:axes])
    result = torch._int_mm(left.reshape(-1, depth), right.reshape(depth, -1))
    return result.reshape(*left.shape[: left.ndim - axes], *right.shape[axes:])
