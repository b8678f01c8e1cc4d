"""Sections of rotary positions: which pair of features is rotated by which axis of a position."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from keras import ops

from kerasattention import checks
from kerasattention.attend.tensors import Tensor
from kerasattention.positions.frequencies import Frequencies
from kerasattention.positions.scaling import rotary_frequencies

KINDS = ("bands", "interleaved", "axial")
MOST_AXES = 16


@dataclasses.dataclass(frozen=True)
class Sections:
    """The pairs of features of each axis.

    Attributes:
        sizes: The number of pairs of each axis.
        kind: "bands": consecutive pairs, with the frequencies that they have among all
            (Qwen2-VL); "interleaved": the same frequencies, the axes in turn (Qwen3-VL);
            "axial": consecutive pairs, each axis with all frequencies from the fastest on.
    """

    sizes: tuple[int, ...]
    kind: str = "bands"

    @property
    def axis_of_pair(self) -> np.ndarray:
        """(R / 2): the axis that rotates each pair."""
        count, pairs = len(self.sizes), sum(self.sizes)
        if self.kind != "interleaved":
            return np.repeat(np.arange(count, dtype="int32"), self.sizes)  # (R / 2)
        axes = np.zeros(pairs, dtype="int32")  # (R / 2)
        for axis, size in enumerate(self.sizes[1:], start=1):
            axes[axis : count * size : count] = axis
        return axes  # (R / 2)

    def frequencies(self, theta: float) -> Frequencies:
        """Those of "axial", the same for each axis."""
        parts = [rotary_frequencies(theta, 2 * size).values for size in self.sizes]
        return Frequencies(np.concatenate(parts))

    def of_pairs(self, positions: Tensor) -> Tensor:
        """Positions (B|1, T, axes) to those of each pair, (B|1, T, R / 2)."""
        return ops.take(positions, self.axis_of_pair, axis=-1)  # (B|1, T, R / 2)

    def config(self) -> dict[str, Any] | list[int]:
        """As it was given."""
        sizes = list(self.sizes)
        return sizes if self.kind == "bands" else {"type": self.kind, "sizes": sizes}


def as_sections(sections: Any) -> Sections | None:
    """None, whole numbers, or a dictionary with `sizes` and a `type`.

    Raises:
        ValueError: Anything else; the message has the rule.
    """
    if sections is None:
        return None
    kind: str = "bands"
    sizes: Any = sections
    if isinstance(sections, Mapping):
        kind, sizes = sections.get("type", kind), sections.get("sizes")
        if set(sections) - {"type", "sizes"} or kind not in KINDS:
            raise ValueError(
                f"`sections` as a dictionary must have `sizes` and a `type` of {KINDS}. "
                f"Received: sections={dict(sections)!r}"
            )
    if not _are_sizes(sizes):
        raise ValueError(
            f"`sections` must be 2 to {MOST_AXES} whole numbers above 0, how many pairs of "
            "features each axis of a position rotates, or a dictionary of `sizes` and `type`. "
            f"Received: sections={sections!r}"
        )
    made = Sections(tuple(sizes), kind)
    _check_interleaved(made)
    return made


def _are_sizes(sizes: Any) -> bool:
    return (
        isinstance(sizes, Sequence)
        and 2 <= len(sizes) <= MOST_AXES
        and all(checks.is_integer(size) and 0 < size < checks.MOST_FEATURES for size in sizes)
    )


def _check_interleaved(sections: Sections) -> None:
    """Axes that take turns leave the rest of the pairs to the first one."""
    found = np.bincount(sections.axis_of_pair, minlength=len(sections.sizes))
    if not np.array_equal(found, sections.sizes):
        raise ValueError(
            '`sections` of type "interleaved" must fit the turns of the axes: the first axis has '
            f"the pairs that the others leave. Received: sizes={list(sections.sizes)}, of "
            f"which the pairs would be {found.tolist()}"
        )
