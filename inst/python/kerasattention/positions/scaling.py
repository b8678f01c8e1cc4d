"""Frequencies of rotary positions, and their scalings beyond a model's training length.

Each scaling takes the parameters of the published model configs, under their names.
Everything is NumPy in float64: it happens once, when a layer is traced.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from kerasattention import checks


class Frequencies(NamedTuple):
    """One frequency per pair of features, and the factor of cosine and sine."""

    values: np.ndarray  # (R / 2), radians per position
    attention_factor: float = 1.0


def rotary_frequencies(
    theta: float, size: int, scaling: Mapping[str, Any] | None = None
) -> Frequencies:
    """theta ** (-2 i / size) for the pairs i of `size` features, scaled if asked for."""
    if scaling is None:
        return Frequencies(_unscaled(theta, size))
    options = {name: value for name, value in scaling.items() if name != "type"}
    return SCALINGS[scaling["type"]].function(theta, size, **options)


def _unscaled(theta: float, size: int) -> np.ndarray:
    return theta ** (-np.arange(0, size, 2, dtype=np.float64) / size)  # (R / 2)


def _linear(theta: float, size: int, factor: float) -> Frequencies:
    """Position interpolation (Chen et al. 2023): positions divided by the factor."""
    return Frequencies(_unscaled(theta, size) / factor)


def _ntk(theta: float, size: int, factor: float) -> Frequencies:
    """NTK-aware: a larger theta, so that the slowest pair is slowed by the factor."""
    stretched = theta * factor ** (size / (size - 2)) if size > 2 else theta * factor
    return Frequencies(_unscaled(stretched, size))


def _llama3(
    theta: float,
    size: int,
    factor: float,
    low_freq_factor: float = 1.0,
    high_freq_factor: float = 4.0,
    original_max_position_embeddings: int = 8192,
) -> Frequencies:
    """Llama 3.1: long waves divided by the factor, short ones kept, a ramp between."""
    frequencies = _unscaled(theta, size)  # (R / 2)
    turns = original_max_position_embeddings * frequencies / (2 * math.pi)  # (R / 2)
    kept = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor)  # (R / 2)
    return Frequencies(_blend(frequencies, factor, np.clip(kept, 0.0, 1.0)))


def _yarn(
    theta: float,
    size: int,
    factor: float,
    original_max_position_embeddings: int,
    attention_factor: float | None = None,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    mscale: float | None = None,
    mscale_all_dim: float | None = None,
    truncate: bool = True,
) -> Frequencies:
    """YaRN (Peng et al. 2023): a ramp over the pairs, and an attention factor."""

    def pair_with_turns(turns: float) -> float:
        waves = original_max_position_embeddings / (turns * 2 * math.pi)
        return size * math.log(waves) / (2 * math.log(theta))

    low, high = pair_with_turns(beta_fast), pair_with_turns(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    if low == high:
        high += 0.001
    ramp = np.clip((np.arange(size // 2) - low) / (high - low), 0.0, 1.0)  # (R / 2)
    if attention_factor is None:
        attention_factor = _attention_factor(factor, mscale, mscale_all_dim)
    return Frequencies(_blend(_unscaled(theta, size), factor, 1.0 - ramp), attention_factor)


def _attention_factor(factor: float, mscale: float | None, mscale_all_dim: float | None) -> float:
    """sqrt(1 / t) of the YaRN paper, or the quotient that DeepSeek's configs describe."""

    if mscale and mscale_all_dim:
        return _magnitude(factor, mscale) / _magnitude(factor, mscale_all_dim)
    return _magnitude(factor, 1.0)


def _magnitude(factor: float, scale: float) -> float:
    return 1.0 if factor <= 1.0 else 0.1 * scale * math.log(factor) + 1.0


def factor_of_all_logits(scaling: Mapping[str, Any] | None) -> float:
    """The factor by which `mscale_all_dim` of a YaRN scaling changes DeepSeek's logits.

    The rotated features have `mscale / mscale_all_dim` of it already, all others none.
    """
    all_dims = (scaling or {}).get("mscale_all_dim")
    return _magnitude(scaling["factor"], all_dims) ** 2 if scaling and all_dims else 1.0


def _blend(frequencies: np.ndarray, factor: float, kept: np.ndarray) -> np.ndarray:
    """A share `kept` of each frequency unchanged, the rest divided by the factor."""
    return frequencies * kept + frequencies / factor * (1.0 - kept)  # (R / 2)


@dataclasses.dataclass(frozen=True)
class Scaling:
    """A kind of scaling: its function, and which parameters it must and may have."""

    function: Callable[..., Frequencies]
    required: tuple[str, ...] = ("factor",)
    optional: tuple[str, ...] = ()


SCALINGS = {
    "linear": Scaling(_linear),
    "ntk": Scaling(_ntk),
    "yarn": Scaling(
        _yarn,
        required=("factor", "original_max_position_embeddings"),
        optional=(
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "truncate",
        ),
    ),
    "llama3": Scaling(
        _llama3,
        optional=("low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    ),
}


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
        _check_value(kind, name, value)
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
