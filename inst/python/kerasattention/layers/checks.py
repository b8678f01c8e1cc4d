"""Checks of arguments and shapes, each message with the rule and what was received."""

from typing import Any

import keras


def positive_integer(name: str, value: Any) -> int:
    # bool is an int in Python; a size of True is a mistake.
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise ValueError(
            f"The argument `{name}` must be a positive integer. Received: {name}={value!r}"
        )
    return value


def optional_positive_integer(name: str, value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise ValueError(
            f"The argument `{name}` must be `None` or a positive integer. "
            f"Received: {name}={value!r}"
        )
    return value


def rate(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
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
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise ValueError(
            f"`{name}` must be `None` or a positive number. Received: {name}={value!r}"
        )
    return float(value)


def divisible_heads(query_heads: int, kv_heads: int) -> None:
    if query_heads % kv_heads:
        divisors = [n for n in range(1, query_heads + 1) if query_heads % n == 0]
        raise ValueError(
            "`num_query_heads` must be divisible by `num_key_value_heads`. Received: "
            f"num_query_heads={query_heads}, num_key_value_heads={kv_heads}. "
            f"`num_key_value_heads` can be one of {divisors}."
        )


def seed(value: Any) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise ValueError(f"`seed` must be `None` or an integer. Received: seed={value!r}")
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
    """Refuses a mask where a bias belongs: added as 0 and 1 it would hide nothing."""
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


def optional_integers(name: str, value: Any, least: int | None = None) -> tuple[int, ...] | None:
    """None, or one integer or several, as a tuple."""
    if value is None:
        return None
    values = (value,) if isinstance(value, int) else value
    valid = isinstance(values, (list, tuple)) and len(values) > 0
    for item in values if valid else ():
        valid = valid and isinstance(item, int) and not isinstance(item, bool)
        valid = valid and (least is None or item >= least)
    if not valid:
        kind = "integer" if least is None else "positive integer"
        raise ValueError(
            f"Invalid `{name}`: it must be `None`, a {kind}, or a tuple or list of "
            f"them. Received: {name}={value!r}"
        )
    return tuple(values)
