"""Checks of arguments; each message has the rule and the value received."""

import math
from collections.abc import Sequence
from typing import Any

import keras


class OutOfRangeError(ValueError):
    """An index that a model does not have. R, which counts from 1, writes its own message.

    Attributes:
        argument: The argument that holds the index.
        index: Counted from 0.
        count: How many there are.
        layer: The attention layer whose heads or queries are counted, or None.
    """

    def __init__(self, argument: str, index: int, count: int, layer: str | None = None) -> None:
        self.argument, self.index, self.count, self.layer = argument, index, count, layer
        where = "" if layer is None else f" in layer {layer!r}"
        super().__init__(
            f"`{argument}` must lie between 0 and {count - 1}{where}. Received: {index}"
        )


class UnknownLayerError(ValueError):
    """A name or an index that is none of the model's attention layers.

    Attributes:
        argument: The argument that holds the name or index.
        layer: The name, or the index counted from 0.
        known: The names of the attention layers.
    """

    def __init__(self, argument: str, layer: str | int, known: Sequence[str]) -> None:
        self.argument, self.layer, self.known = argument, layer, list(known)
        super().__init__(
            f"`{argument}` must be names or indices of attention layers. "
            f"Received: {layer!r}; the model has {self.known}"
        )


def indices(argument: str, given: Sequence[int], count: int, layer: str) -> tuple[int, ...]:
    """Refuses indices of heads or queries that a layer does not have."""
    for index in given:
        if not 0 <= index < count:
            raise OutOfRangeError(argument, index, count, layer)
    return tuple(given)


def is_integer(value: Any) -> bool:
    # bool is an int in Python; a size of True is a mistake.
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_positive_integer(value: Any) -> bool:
    return is_integer(value) and value > 0


def positive_integer(name: str, value: Any) -> int:
    if not _is_positive_integer(value):
        raise ValueError(f"`{name}` must be a positive integer. Received: {name}={value!r}")
    return value


def optional_positive_integer(name: str, value: Any) -> int | None:
    if value is not None and not _is_positive_integer(value):
        raise ValueError(
            f"`{name}` must be `None` or a positive integer. Received: {name}={value!r}"
        )
    return value


def rate(name: str, value: Any) -> float:
    if not is_number(value) or not 0 <= value < 1:
        raise ValueError(
            f"`{name}` must be a number, at least 0 and less than 1. Received: {name}={value!r}"
        )
    return value


def flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"`{name}` must be True or False. Received: {name}={value!r}")
    return value


def switch(name: str, value: Any) -> bool:
    """A flag of a call, where 0 and 1 stand for False and True as in Keras."""
    if isinstance(value, (bool, int)) and value in (0, 1):
        return bool(value)
    raise ValueError(f"`{name}` must be True or False. Received: {name}={value!r}")


def optional_flag(name: str, value: Any) -> bool | None:
    return None if value is None else flag(name, value)


def optional_positive_number(name: str, value: Any) -> float | None:
    if value is None:
        return None
    # Outside of float32's range it would be 0 or infinite in the formula, which gives NaN.
    if not is_number(value) or not 1.2e-38 <= value <= 3.4e38:
        raise ValueError(
            f"`{name}` must be `None` or a positive number. Received: {name}={value!r}"
        )
    return float(value)


def divisible_heads(query_heads: int, kv_heads: int) -> None:
    if query_heads % kv_heads:
        raise ValueError(
            "`num_query_heads` must be divisible by `num_key_value_heads`. Received: "
            f"num_query_heads={query_heads}, num_key_value_heads={kv_heads}. "
            f"`num_key_value_heads` can be one of {divisors(query_heads)}."
        )


def divisors(number: int) -> list[int]:
    """The divisors of a number that an error lists; of one above 2^40 only 1 and itself."""
    if number > 2**40:
        return [1, number]
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})


# Several times what the largest published models have. Beyond it a size is a mistake, or
# comes from a file that is not to be trusted, and allocating would end the process.
MOST_FEATURES = 2**20
MOST_NUMBERS = 2**30


def rows(rows: Any, length: int | None, layer: str) -> None:
    """Refuses query rows that a layer's input does not have, where its length is known."""
    if rows is not None and length is not None and not 0 <= rows.start < rows.stop <= length:
        outside = rows.start if not 0 <= rows.start < length else rows.stop - 1
        raise OutOfRangeError("rows", outside, length, layer)


def width(heads: int, size: int) -> None:
    """Refuses more features in all heads than any model has."""
    if heads * size > MOST_FEATURES:
        raise ValueError(
            f"The number of heads times their size must be at most {MOST_FEATURES}. "
            f"Received: {heads} heads of size {size}"
        )


def kernel(name: str, shape: Sequence[int | None]) -> None:
    """Refuses a kernel that no memory holds, before anything is allocated."""
    numbers = math.prod(size or 1 for size in shape)
    if numbers > MOST_NUMBERS or max(size or 1 for size in shape) > MOST_FEATURES:
        raise ValueError(
            f"The kernel of `{name}` may have at most {MOST_NUMBERS} numbers, and "
            f"{MOST_FEATURES} along an axis. Received: shape {tuple(shape)}"
        )


def seed(name: str, value: Any) -> int | None:
    if value is not None and not (is_integer(value) and -(2**31) <= value < 2**31):
        raise ValueError(
            f"`{name}` must be `None` or an integer of 32 bits. Received: {name}={value!r}"
        )
    return value


def one_tensor(name: str, value: Any) -> Any:
    """Refuses several tensors where one belongs."""
    if isinstance(value, (list, tuple)):
        raise ValueError(
            f"`{name}` must be one tensor; query, value and key are arguments of their own: "
            f"`layer(query, value, key)`. Received: {name} as a {type(value).__name__} "
            f"of {len(value)}"
        )
    return value


def floats(name: str, value: Any) -> None:
    """Refuses an input of anything but floating-point numbers."""
    dtype = keras.backend.standardize_dtype(value.dtype)
    if not keras.backend.is_float_dtype(dtype):
        raise ValueError(
            f"`{name}` must be floating-point numbers. Received: {name} of dtype {dtype}"
        )


def bias(value: Any) -> None:
    """Refuses a mask in place of a bias: added as 0 and 1 it would mask nothing out."""
    if value is not None and keras.backend.standardize_dtype(value.dtype) == "bool":
        raise ValueError(
            "`attention_bias` is added to the logits and must be numbers; `attention_mask` "
            "says what to attend. Received: attention_bias of dtype bool"
        )


def integers(name: str, value: Any) -> None:
    """Refuses a tensor of anything but integers; None passes."""
    if value is None:
        return
    dtype = keras.backend.standardize_dtype(value.dtype)
    if not keras.backend.is_int_dtype(dtype):
        # In low precision floats have been rounded by now.
        raise ValueError(f"`{name}` must be integers. Received: {name} of dtype {dtype}")


def positions(value: Any) -> None:
    """Refuses positions that are no integers and no real numbers of enough precision."""
    if value is None:
        return
    dtype = keras.backend.standardize_dtype(value.dtype)
    if not keras.backend.is_int_dtype(dtype) and dtype not in ("float32", "float64"):
        raise ValueError(
            "`positions` must be integers, or real numbers in float32 or float64. "
            f"Received: positions of dtype {dtype}"
        )


def optional_integers(name: str, value: Any, positive: bool = False) -> tuple[int, ...] | None:
    """None, or one integer or several, as a tuple."""
    if value is None:
        return None
    values = (value,) if isinstance(value, int) else value
    is_valid = _is_positive_integer if positive else is_integer
    if not isinstance(values, (list, tuple)) or not values or not all(map(is_valid, values)):
        kind = "a positive integer" if positive else "an integer"
        raise ValueError(
            f"`{name}` must be `None`, {kind}, or a tuple or list of them. "
            f"Received: {name}={value!r}"
        )
    return tuple(values)
