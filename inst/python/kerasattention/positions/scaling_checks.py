"""Checks of the scaling of rotary positions: its type, and the parameters of that."""

from collections.abc import Mapping, Sequence
from typing import Any

from kerasattention import checks
from kerasattention.positions.scaling import SCALINGS

_FACTORS = ("short_factor", "long_factor")
_LENGTHS = ("length", "max_position_embeddings")


def check_scaling(scaling: Any) -> dict[str, Any] | None:
    """The scaling with its `type`, or an error with the rule and what was received.

    `rope_type`, as newer model configs write it, is taken for `type`, and None for a
    parameter that is not given.
    """
    if scaling is None:
        return None
    kinds = ", ".join(f'"{kind}"' for kind in SCALINGS)
    if not isinstance(scaling, Mapping):
        raise ValueError(
            f"`scaling` must be `None` or a dictionary with a `type` of {kinds} and its "
            f"parameters. Received: scaling={scaling!r}"
        )
    options = {name: value for name, value in scaling.items() if value is not None}
    kind = options.pop("type", None)
    rope_type = options.pop("rope_type", kind)
    kind = rope_type if kind is None else kind
    if not isinstance(kind, str) or kind not in SCALINGS or rope_type != kind:
        raise ValueError(f"`scaling` must have a `type` of {kinds}. Received: scaling={scaling!r}")
    _check_names(kind, options)
    for name, value in options.items():
        if name in _FACTORS:
            options[name] = _as_factors(name, value)
        else:
            _check_value(kind, name, value)
    if kind == "longrope":
        _check_longrope(options)
    if kind == "llama3":
        _check_llama3(options)
    return {"type": kind, **options}


def _check_names(kind: str, options: dict[str, Any]) -> None:
    required, optional = SCALINGS[kind].required, SCALINGS[kind].optional
    for name in required:
        if name not in options:
            raise ValueError(
                f'`scaling` of type "{kind}" needs `{name}`. Received: scaling={options}'
            )
    for name in options:
        if name not in required + optional:
            raise ValueError(
                f'`scaling` of type "{kind}" has no `{name}`: it takes '
                f"{', '.join(f'`{known}`' for known in required + optional)}. "
                f"Received: {name}={options[name]!r}"
            )


def _check_value(kind: str, name: str, value: Any) -> None:
    received = f"Received: {name}={value!r}"
    if name == "truncate":
        if not isinstance(value, bool):
            raise ValueError(f"`truncate` of `scaling` must be True or False. {received}")
        return
    if not checks.is_number(value) or not 0 < value < 1e30:
        raise ValueError(f"`{name}` of `scaling` must be a positive number. {received}")
    if name in _LENGTHS and not checks.is_integer(value):
        raise ValueError(f"`{name}` of `scaling` must be a whole number above 0. {received}")
    if name == "partial_rotary_factor" and value > 1:
        raise ValueError(f"`{name}` of `scaling` must be at most 1. {received}")
    if name == "factor" and value < 1:
        raise ValueError(
            f'`factor` of a "{kind}" scaling must be at least 1: positions are stretched '
            f"by it. {received}"
        )


def _check_llama3(options: dict[str, Any]) -> None:
    low, high = options.get("low_freq_factor", 1.0), options.get("high_freq_factor", 4.0)
    if not high > low:
        raise ValueError(
            "`high_freq_factor` of `scaling` must be greater than `low_freq_factor`. "
            f"Received: low_freq_factor={low!r}, high_freq_factor={high!r}"
        )


def _as_factors(name: str, value: Any) -> list[float]:
    """A divisor for each pair of features, as a list."""
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    given: list[Any] = list(value) if is_list else [value]
    if not given or not all(checks.is_number(x) and 0 < x < 1e30 for x in given):
        raise ValueError(
            f"`{name}` of `scaling` must be positive numbers, one for each pair of rotated "
            f"features. Received: {name}={value!r}"
        )
    return [float(x) for x in given]


def _check_longrope(options: dict[str, Any]) -> None:
    """The attention factor is given, or follows from how far the model is to read."""
    names = ("max_position_embeddings", "factor", "attention_factor")
    if not any(name in options for name in names):
        raise ValueError(
            '`scaling` of type "longrope" needs `max_position_embeddings`, `factor` or '
            f"`attention_factor`. Received: scaling={options}"
        )
    original = options["original_max_position_embeddings"]
    if not original > 1:
        raise ValueError(
            "`original_max_position_embeddings` of `scaling` must be greater than 1. Received: "
            f"original_max_position_embeddings={original!r}"
        )
