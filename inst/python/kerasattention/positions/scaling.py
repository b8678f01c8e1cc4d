"""Frequencies of rotary positions, and their scalings beyond a model's training length.

Each scaling takes the parameters of the published model configs, under their names.
Everything is NumPy in float64: it happens once, when a layer is traced.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from kerasattention.positions.frequencies import (
    DynamicFrequencies,
    Frequencies,
    LongFrequencies,
    dynamic_exponents,
    dynamic_growth,
)


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


def _dynamic(
    theta: float,
    size: int,
    factor: float,
    original_max_position_embeddings: int,
    length: int | None = None,
) -> Frequencies:
    """Dynamic NTK: a theta that grows with the length beyond the original one."""
    original, values = original_max_position_embeddings, _unscaled(theta, size)  # (R / 2)
    if length is None:
        return Frequencies(values, by_length=DynamicFrequencies(original, factor))
    growth = dynamic_growth(max(length, original), factor, original)
    return Frequencies(values * growth ** dynamic_exponents(size))


def _longrope(
    theta: float,
    size: int,
    short_factor: Sequence[float],
    long_factor: Sequence[float],
    original_max_position_embeddings: int,
    max_position_embeddings: int | None = None,
    factor: float | None = None,
    attention_factor: float | None = None,
    length: int | None = None,
) -> Frequencies:
    """LongRoPE (Ding et al. 2024): a divisor for each pair, others for long sequences."""
    original = original_max_position_embeddings
    for name, given in (("short_factor", short_factor), ("long_factor", long_factor)):
        if len(given) != size // 2:
            raise ValueError(
                f"`{name}` of `scaling` must have one number for each of the {size // 2} pairs of "
                f"rotated features. Received: {len(given)} of them"
            )
    if attention_factor is None:
        stretch = (max_position_embeddings or original) / original if factor is None else factor
        attention_factor = 1.0
        if stretch > 1.0:
            attention_factor = math.sqrt(1.0 + math.log(stretch) / math.log(original))
    unscaled = _unscaled(theta, size)  # (R / 2)
    short, long = (
        unscaled / np.array(given, dtype=np.float64) for given in (short_factor, long_factor)
    )  # (R / 2)
    if length is None:
        by_length = LongFrequencies(original, tuple(long.tolist()))
        return Frequencies(short, attention_factor, by_length)
    return Frequencies(long if length > original else short, attention_factor)


def _proportional(
    theta: float, size: int, factor: float = 1.0, partial_rotary_factor: float = 1.0
) -> Frequencies:
    """Gemma 4: only the first pairs are rotated, with the frequencies that they have among all."""
    rotated = int(partial_rotary_factor * size // 2)
    kept = np.arange(size // 2) < rotated  # (R / 2)
    return Frequencies(np.where(kept, _unscaled(theta, size) / factor, 0.0))


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
    "longrope": Scaling(
        _longrope,
        required=("short_factor", "long_factor", "original_max_position_embeddings"),
        optional=("max_position_embeddings", "factor", "attention_factor", "length"),
    ),
    "dynamic": Scaling(
        _dynamic,
        required=("factor", "original_max_position_embeddings"),
        optional=("length",),
    ),
    "proportional": Scaling(
        _proportional, required=(), optional=("factor", "partial_rotary_factor")
    ),
}
