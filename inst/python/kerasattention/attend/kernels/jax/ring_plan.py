"""Which blocks of queries and keys a ring of devices computes, known before anything runs.

A sequence has n equal blocks, one on each device. In a step of shift s device i has the keys of
device i - s. Blocks of which the rules of positions hide every key are not computed, and keys are
not sent to where nothing of them is visible.
"""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np

from kerasattention.attend.mask import AttentionMask
from kerasattention.attend.tensors import Span

HIDDEN = 0


class Variant(NamedTuple):
    """How one kind of blocks is computed.

    Attributes:
        has_rules: Whether rules of positions mask keys out.
        offset: The position of the first query less that of the first key, where the block has
            rules that need nothing else; otherwise None.
    """

    has_rules: bool
    offset: int | None = None


class Steps(NamedTuple):
    """Consecutive steps of a ring.

    Attributes:
        hop: How many devices further the keys go before each step.
        first: The shift of the first step.
        count: The number of steps.
        variants: The numbers of the variants that some device computes in one of them.
    """

    hop: int
    first: int
    count: int
    variants: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class RingPlan:
    """What each device computes in each step.

    Attributes:
        variants: The kinds of blocks. That of number `HIDDEN` is not computed.
        table: (n, n), the number of the variant for the queries of one device and the keys of
            another.
        steps: All steps, in order.
    """

    variants: tuple[Variant, ...]
    table: np.ndarray
    steps: tuple[Steps, ...]

    @property
    def last_shift(self) -> int:
        if not self.steps:
            return 0
        return self.steps[-1].first + (self.steps[-1].count - 1) * self.steps[-1].hop


def ring_plan(mask: AttentionMask, length: int, size: int) -> RingPlan:
    """The plan for blocks of `length` queries and keys on each of `size` devices.

    Args:
        mask: Of the whole sequence.
    """
    rules = mask.only_positions() if not mask.has_explicit_positions else None
    return _ring_plan(None if rules is None else rules.without_tensors(), length, size)


@functools.lru_cache(maxsize=64)
def _ring_plan(mask: AttentionMask | None, length: int, size: int) -> RingPlan:
    numbers: dict[Variant, int] = {Variant(False, HIDDEN): HIDDEN}
    table = np.zeros((size, size), "int32")
    for i in range(size):
        for j in range(size):
            variant = _variant(mask, i, j, length)
            if variant is not None:
                table[i, j] = numbers.setdefault(variant, len(numbers))
    return RingPlan(tuple(numbers), table, tuple(_steps(table)))


def _variant(mask: AttentionMask | None, i: int, j: int, length: int) -> Variant | None:
    """Of the queries of device i and the keys of device j; None if all keys are masked out."""
    if mask is None:  # positions that are tensors
        return Variant(True)
    rows, columns = Span(i * length, length), Span(j * length, length)
    spans = mask.key_spans(rows, columns.stop)
    if not any(span.stop > columns.start for span in spans):
        return None
    if not mask.masks_positions(rows, columns):
        return Variant(False)
    if mask.is_band and mask.is_relative:
        return Variant(True, (i - j) * length + mask.offset)
    return Variant(True)


def _steps(table: np.ndarray) -> list[Steps]:
    size = len(table)
    of_shift = [{int(table[i, (i - shift) % size]) for i in range(size)} for shift in range(size)]
    found: list[Steps] = []
    at = 0
    for shift, variants in enumerate(of_shift):
        if variants == {HIDDEN}:
            continue
        hop = shift - at
        last = found[-1] if found else None
        if last is not None and hop == last.hop:
            variants = variants.union(last.variants)
            found[-1] = last._replace(count=last.count + 1, variants=tuple(sorted(variants)))
        else:
            found.append(Steps(hop, shift, 1, tuple(sorted(variants))))
        at = shift
    return found
