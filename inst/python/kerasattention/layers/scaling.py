"""Factors of the queries before the product with the keys."""

import math
from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from kerasattention import checks
from kerasattention.attend.tensors import Tensor, accumulator_of

LEARNED = "learned"


def check_scale(name: str, value: Any) -> float | str | None:
    """None, a positive number, or "learned"."""
    if value is None or value == LEARNED:
        return value
    # Outside of float32's range the logits would be 0 or infinite.
    if not checks.is_number(value) or not 1.2e-38 <= value <= 3.4e38:
        raise ValueError(
            f'`{name}` must be `None`, a positive number or "{LEARNED}". Received: {name}={value!r}'
        )
    return float(value)


def per_dimension_factor(weight: Tensor, dtype: Any) -> Tensor:
    """softplus(weight) / softplus(0), (H), in float32 or better: 1 where the weight is 0."""
    weight = ops.cast(weight, accumulator_of(dtype))  # (H)
    # Not `ops.softplus()`, which on torch is linear above 20: off by 2e-9.
    if keras.backend.backend() == "torch":  # DTensors have no gradient of log_sigmoid()
        import torch

        # Keras's function gives float32 for float64.
        softplus = torch.logaddexp(weight, torch.zeros_like(weight))  # (H)
    else:
        softplus = ops.negative(ops.log_sigmoid(ops.negative(weight)))  # (H)
    return softplus * (1.0 / math.log(2.0))  # (H)


def multiply(heads: Tensor, factor: Tensor) -> Tensor:
    """Heads times a factor that broadcasts to them, in its dtype; the result in that of heads."""
    return ops.cast(ops.cast(heads, factor.dtype) * factor, heads.dtype)  # (B, T, N, H)


@keras.saving.register_keras_serializable(package="kerasattention")
class ScaleByPosition:
    """A factor of each query that grows with its position p.

    Attention over more keys is spread wider; a larger factor makes up for that beyond the length
    that a model was trained on.

    Args:
        type: "llama4": 1 + attn_scale * log(1 + floor((p + offset) / floor_scale)), as in Llama
            4 and, with `offset=0`, Ministral 3. "log": log(p + 1) / log(length), and 1 where that
            is less: log-n scaling, as in Qwen.
        attn_scale: Of "llama4", 0.1 by default.
        floor_scale: Of "llama4", the number of positions of a step, 8192 by default.
        offset: Of "llama4", added to the position, 1 by default.
        length: Of "log", the training length, which must be given.

    Raises:
        ValueError: A value that does not fit; the message has the rule.
    """

    def __init__(
        self,
        type: str = "llama4",
        *,
        attn_scale: float | None = None,
        floor_scale: float | None = None,
        offset: float | None = None,
        length: float | None = None,
    ) -> None:
        given = {
            "attn_scale": attn_scale,
            "floor_scale": floor_scale,
            "offset": offset,
            "length": length,
        }
        if not isinstance(type, str) or type not in _DEFAULTS:
            raise ValueError(f"`type` must be one of {list(_DEFAULTS)}. Received: type={type!r}")
        defaults = _DEFAULTS[type]
        for name, value in given.items():
            if value is not None and name not in defaults:
                raise ValueError(
                    f'The scale of type "{type}" takes {list(defaults)}. Received: {name}={value!r}'
                )
        self.type = type
        self.options = {
            name: _check_number(name, default if given[name] is None else given[name])
            for name, default in defaults.items()
        }

    def factors(self, positions: Tensor, dtype: Any) -> Tensor:
        """(T) or (B, T) positions to factors, in float32 or better; 1 before position 0."""
        options = self.options
        # `ops.maximum()` and `ops.floor()` would give float32 for float64 on torch, `clip()` and
        # `cast()` do not.
        at = ops.clip(ops.cast(positions, accumulator_of(dtype)), 0.0, _MOST)  # (B|1, T)
        if self.type == "log":
            logs = ops.log1p(at) * (1.0 / math.log(options["length"]))  # (B|1, T)
            return ops.clip(logs, 1.0, _MOST)  # (B|1, T)
        steps = (at + options["offset"]) / options["floor_scale"]  # (B|1, T)
        steps = ops.cast(ops.clip(steps, 0.0, _MOST), "int32")  # (B|1, T)
        return ops.log1p(ops.cast(steps, at.dtype)) * options["attn_scale"] + 1.0  # (B|1, T)

    def get_config(self) -> dict[str, Any]:
        return {"type": self.type, **self.options}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "ScaleByPosition":
        return cls(**config)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ScaleByPosition) and self.get_config() == other.get_config()

    def __hash__(self) -> int:
        return hash(tuple(self.get_config().items()))

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        return f"ScaleByPosition({self.type!r}, {options})"


_MOST = 2.0e9  # less than the greatest int32

# What each type takes; None: it must be given.
_DEFAULTS: dict[str, dict[str, float | None]] = {
    "llama4": {"attn_scale": 0.1, "floor_scale": 8192.0, "offset": 1.0},
    "log": {"length": None},
}


def _check_number(name: str, value: Any) -> float:
    least, rule = {
        "attn_scale": (0.0, "a number of at least 0"),
        "floor_scale": (1e-6, "a number of at least 1e-6"),
        "offset": (0.0, "a number of at least 0"),
        "length": (1.0 + 1e-6, "a number above 1"),
    }[name]
    if not checks.is_number(value) or not least <= value < 1e12:
        raise ValueError(f"`{name}` must be {rule}. Received: {name}={value!r}")
    return float(value)


def check_query_scale(name: str, value: Any) -> ScaleByPosition | None:
    """None, a `ScaleByPosition`, or a dictionary of its arguments."""
    if value is None or isinstance(value, ScaleByPosition):
        return value
    known = {"type", *(option for options in _DEFAULTS.values() for option in options)}
    if not isinstance(value, Mapping) or not known.issuperset(value):
        raise ValueError(
            f"`{name}` must be `None`, a `ScaleByPosition()` or a dictionary of its arguments. "
            f"Received: {name}={value!r}"
        )
    return ScaleByPosition(**value)
