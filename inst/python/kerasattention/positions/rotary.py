"""Rotary positions: rotate pairs of features by an angle proportional to the position."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from kerasattention import checks
from kerasattention.attend.tensors import Tensor, accumulator_of, cos_and_sin, tensor_of
from kerasattention.positions.base import Position
from kerasattention.positions.frequencies import Frequencies
from kerasattention.positions.scaling import rotary_frequencies
from kerasattention.positions.scaling_checks import check_scaling
from kerasattention.positions.sections import as_sections

LAYOUTS = ("half", "interleaved")


@keras.saving.register_keras_serializable(package="kerasattention")
class RotaryPosition(Position):
    """Rotary position embedding (Su et al. 2021, https://arxiv.org/abs/2104.09864).

    The pair i of the R rotated features is rotated by position * theta^(-2 i / R),
    in queries and keys alike, so that logits depend only on distances.

    Args:
        theta: Base of the frequencies.
        fraction: Share of each head's features that are rotated, from the first on;
            the rest carry no position. R = fraction * H must be even.
        layout: "half" pairs feature i with i + R / 2, as Llama and GPT-NeoX do;
            "interleaved" pairs 2 i with 2 i + 1, as GPT-J does.
        scaling: None, or a dictionary with a `type` and the parameters that
            published configs give under the same names:
            "linear" (`factor`), Chen et al. 2023, https://arxiv.org/abs/2306.15595;
            "ntk" (`factor`), NTK-aware, theta * factor^(R / (R - 2));
            "yarn" (`factor`, `original_max_position_embeddings`; may have
            `attention_factor`, `beta_fast`, `beta_slow`, `mscale`,
            `mscale_all_dim`, `truncate`), Peng et al. 2023,
            https://arxiv.org/abs/2309.00071;
            "llama3" (`factor`; may have `low_freq_factor`, `high_freq_factor`,
            `original_max_position_embeddings`), Llama 3.1;
            "longrope" (`short_factor`, `long_factor`, `original_max_position_embeddings`, and
            `max_position_embeddings`, `factor` or `attention_factor`; may have `length`), Ding et
            al. 2024, https://arxiv.org/abs/2402.13753;
            "dynamic" (`factor`, `original_max_position_embeddings`; may have `length`), NTK-aware
            with a base that grows with the length of the sequence;
            "proportional" (may have `factor`, `partial_rotary_factor`), Gemma 4.
            With "longrope" and "dynamic" the frequencies of a sequence depend on its largest
            position. `length` sets them for all sequences to those of one length. Without it a
            model is decoded up to the original length: further on, the cached keys would have
            other frequencies than in a full pass.
        sections: None, or the number of pairs that each axis of positions (B, T, axes) rotates,
            such as (16, 24, 24) for Qwen2-VL. The sum is R / 2. Or a dictionary with these `sizes`
            and a `type`: "bands", consecutive pairs of all frequencies; "interleaved", the axes
            in turn, as in Qwen3-VL; "axial", frequencies from the fastest on for each axis, as for
            the rows and columns of an image. Without positions, a layer that attends over so many
            axes takes the indices along each; for other layers all axes have the index of the
            token, and "axial" needs positions.

    Raises:
        ValueError: A value that does not fit; the message has the rule.
    """

    def __init__(
        self,
        theta: float = 10000.0,
        fraction: float = 1.0,
        layout: str = "half",
        scaling: Mapping[str, Any] | None = None,
        sections: Any = None,
    ) -> None:
        if not _is_number(theta) or not theta > 1:
            raise ValueError(f"`theta` must be a number above 1. Received: theta={theta!r}")
        if not _is_number(fraction) or not 0 < fraction <= 1:
            raise ValueError(
                "`fraction` must be a number above 0 and at most 1. "
                f"Received: fraction={fraction!r}"
            )
        if layout not in LAYOUTS:
            raise ValueError(f"`layout` must be one of {LAYOUTS}. Received: layout={layout!r}")
        self.theta = float(theta)
        self.fraction = float(fraction)
        self.layout = layout
        self.scaling = check_scaling(scaling)
        self.sections = as_sections(sections)
        self._check_together()

    def _check_together(self) -> None:
        kind = None if self.scaling is None else self.scaling["type"]
        if kind == "proportional" and self.fraction < 1:
            raise ValueError(
                'A `scaling` of type "proportional" has the share of rotated features in its '
                "`partial_rotary_factor`, and `fraction` must be 1. Received: "
                f"fraction={self.fraction}"
            )
        if kind is not None and self.needs_axes:
            raise ValueError(
                '`sections` of type "axial" have no `scaling`. Received: '
                f"sections={self.sections}, scaling={self.scaling}"
            )

    @property
    def axes(self) -> int:
        return 1 if self.sections is None else len(self.sections.sizes)

    @property
    def needs_axes(self) -> bool:
        return self.sections is not None and self.sections.kind == "axial"

    @property
    def longest_cached(self) -> int | None:
        scaling = self.scaling or {}
        if scaling.get("type") not in ("longrope", "dynamic") or "length" in scaling:
            return None
        return int(scaling["original_max_position_embeddings"])

    def prepare(self, num_query_heads: int, head_size: int) -> None:
        """Tries the frequencies, so that an error comes when a layer is built."""
        self.frequencies(head_size)

    def rotated_size(self, head_size: int) -> int:
        """R, the number of rotated features of a head."""
        # 0.29 * 100 is 28.999999999999996.
        size = int(head_size * self.fraction + 1e-6)
        if size < 2 or size % 2:
            raise ValueError(
                "Rotary positions rotate pairs of features: `fraction` * head size must be "
                f"even and at least 2. Received: fraction={self.fraction}, head size "
                f"{head_size}, which makes {size}"
            )
        return size

    def frequencies(self, head_size: int) -> Frequencies:
        """Radians per position of each pair, and the factor of cosine and sine."""
        size = self.rotated_size(head_size)
        if self.sections is not None and 2 * sum(self.sections.sizes) != size:
            raise ValueError(
                f"The sum of `sections` must be {size // 2}, the number of pairs of rotated "
                f"features. Received: sections={self.sections.config()}"
            )
        try:
            if self.sections is not None and self.needs_axes:
                return self.sections.frequencies(self.theta)
            frequencies = rotary_frequencies(self.theta, size, self.scaling)
            finite = np.isfinite([*frequencies.values, frequencies.attention_factor]).all()
        except ArithmeticError:
            finite = False
        if not finite:
            raise ValueError(
                "`theta` and `scaling` must give frequencies that are finite. Received: "
                f"theta={self.theta}, scaling={self.scaling}"
            )
        return frequencies

    def rotate(
        self,
        query: Tensor,
        key: Tensor,
        query_positions: Tensor,
        key_positions: Tensor,
    ) -> tuple[Tensor, Tensor]:
        frequencies = self.frequencies(query.shape[-1])
        dtype = accumulator_of(query.dtype)
        # Real positions may need float64, of which float32 keeps 7 digits.
        is_double = keras.backend.standardize_dtype(query_positions.dtype) == "float64"
        wide = "float64" if is_double else dtype
        radians = frequencies.in_dtype(wide, query_positions, key_positions)
        scaled = frequencies.attention_factor
        angles = self._cosine_and_sine(query_positions, radians, scaled, dtype)
        query = self._apply_rotary(query, *angles)  # (B, T, N, H)
        if key_positions is not query_positions:
            angles = self._cosine_and_sine(key_positions, radians, scaled, dtype)
        return query, self._apply_rotary(key, *angles)  # (B, T, N, H), (B, S, K, H)

    def _cosine_and_sine(
        self, positions: Tensor, radians: Tensor, factor: float, dtype: str
    ) -> tuple[Tensor, Tensor]:
        """Factors of the features and of their partners: two of (B|1, T, 1, R).

        Args:
            positions: (T), (B, T) or (B|1, T, axes).
            radians: (R / 2) or (B|1, 1, R / 2), in the dtype of the angles.
        """
        wide = keras.backend.standardize_dtype(radians.dtype)
        places = ops.cast(positions, wide)  # (T), (B, T) or (B|1, T, axes)
        if len(positions.shape) == 3 and self.sections is not None:
            places = self.sections.of_pairs(places)  # (B|1, T, R / 2)
        else:
            places = ops.expand_dims(places, -1)  # (T, 1) or (B, T, 1)
        # Not `ops.multiply()`, which gives float32 for float64 on torch (Keras 3.16).
        angles = places * tensor_of(radians)  # (B|1, T, R / 2)
        cosine, sine = cos_and_sin(angles)  # (B|1, T, R / 2)
        if wide != dtype:
            cosine, sine = (ops.cast(x, dtype) for x in (cosine, sine))  # (B|1, T, R / 2)
        if factor != 1.0:
            cosine, sine = (x * factor for x in (cosine, sine))  # (B|1, T, R / 2)
        cosine, sine = self._pair(cosine, cosine), self._pair(-sine, sine)  # (B|1, T, R)
        return ops.expand_dims(cosine, -2), ops.expand_dims(sine, -2)  # (B|1, T, 1, R)

    def _pair(self, first: Tensor, second: Tensor) -> Tensor:
        """(..., R / 2) for each member of a pair to (..., R)."""
        if self.layout == "half":
            return ops.concatenate([first, second], axis=-1)  # (..., R)
        stacked = ops.stack([first, second], axis=-1)  # (..., R / 2, 2)
        return ops.reshape(stacked, (*ops.shape(first)[:-1], 2 * first.shape[-1]))  # (..., R)

    def _apply_rotary(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """Rotates the first R features of (B, T, N, H)."""
        size = cosine.shape[-1]
        if size == x.shape[-1]:
            return self._combine(x, self._partners(x), cosine, sine)  # (B, T, N, H)
        head, tail = x[..., :size], x[..., size:]  # (B, T, N, R), (B, T, N, H - R)
        rotated = self._combine(head, self._partners(head), cosine, sine)  # (B, T, N, R)
        return ops.concatenate([rotated, tail], axis=-1)  # (B, T, N, H)

    def _combine(self, x: Tensor, partners: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """x cos + partners sin, in the dtype of the angles: bfloat16 would be off by degrees."""
        wide = [ops.cast(part, cosine.dtype) for part in (x, partners)]  # (B, T, N, R)
        return ops.cast(wide[0] * cosine + wide[1] * sine, x.dtype)  # (B, T, N, R)

    def _partners(self, x: Tensor) -> Tensor:
        """Exchanges the two features of each pair."""
        size = x.shape[-1]
        half = self.layout == "half"
        shape = ops.shape(x)
        pairs = (2, size // 2) if half else (size // 2, 2)
        # One flip of a whole axis is several times faster than slicing every other feature.
        flipped = ops.flip(
            ops.reshape(x, (*shape[:-1], *pairs)), axis=-2 if half else -1
        )  # (..., 2, R / 2) or (..., R / 2, 2)
        return ops.reshape(flipped, shape)  # (..., R)

    def get_config(self) -> dict[str, Any]:
        return {
            "theta": self.theta,
            "fraction": self.fraction,
            "layout": self.layout,
            "scaling": None if self.scaling is None else dict(self.scaling),
            **({} if self.sections is None else {"sections": self.sections.config()}),
        }


def _is_number(value: Any) -> bool:
    return checks.is_number(value) and -1e30 < value < 1e30
