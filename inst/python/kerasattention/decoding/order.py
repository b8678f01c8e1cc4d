"""The order of positions that are given for each token, and those of tokens to come.

A token after the prompt must be seen by none before it, whose result is known by then. Rules
compare positions, so those of new tokens must be behind all others. Positions of several axes are
not compared (`layers/coordinates.py`).
"""

from typing import Any

import numpy as np

from kerasattention import checks
from kerasattention.attend.tensors import Tensor
from kerasattention.decoding.graph.plan import Plan
from kerasattention.decoding.graph.prompt_arguments import POSITIONS
from kerasattention.decoding.prompts import as_numpy


class PositionOrder:
    """The largest positions of the rows so far.

    Args:
        plan: How the model is decoded.
        inputs: The model's other inputs, by slot.
        count: t, the number of tokens of the prompts.
        padding: None, or (B), the number of padding tokens of each row.
    """

    def __init__(
        self, plan: Plan, inputs: dict[int, Tensor], count: int, padding: np.ndarray | None
    ) -> None:
        self._specs = {slot: plan.program.specs[slot] for slot in plan.prompt_inputs}
        given = {slot: as_numpy(inputs[slot])[:, :count] for slot in plan.prompt_inputs}
        positions = [slot for slot, x in plan.prompt_inputs.items() if x == POSITIONS]
        self._largest: dict[int, np.ndarray] = {}
        self._compared: set[int] = set()
        if not positions:
            return
        own = np.ones(given[positions[0]].shape[:2], bool)  # (B, t)
        if padding is not None:
            own &= np.arange(count) >= padding[:, None]
        specs = [spec for spec in plan.specs if not spec.cross]
        compared = [spec for spec in specs if spec.position_dtype is not None]
        if all(spec.segmented for spec in compared or specs):
            for slot, argument in plan.prompt_inputs.items():
                if argument == "segment_ids":
                    own &= given[slot] == given[slot][:, -1:]
        # The first tokens may be seen by all others, as by a rule for a prefix.
        self._first = max((spec.lookahead for spec in compared), default=0)
        self._step = max((spec.least_step for spec in compared), default=0)
        for slot in positions:
            x = given[slot]  # (B, t) or (B, t, axes)
            has_axes = x.ndim == 3
            seen = np.where(own, x.max(axis=-1) if has_axes else x, -np.inf).max(axis=1)  # (B)
            self._largest[slot] = seen
            if not has_axes:
                self._compared.add(slot)

    def add(self, positions: dict[int, np.ndarray]) -> None:
        """Takes the positions (B, t) or (B, t, axes) of new tokens, by slot.

        Raises:
            ValueError: One is not behind those before it.
        """
        self._check(positions)
        for slot, given in positions.items():
            largest = given.reshape(len(given), -1).max(axis=1)  # (B)
            self._largest[slot] = np.maximum(self._largest[slot], largest)

    def _check(self, positions: dict[int, np.ndarray]) -> None:
        for slot in self._compared & set(positions):
            smallest, last = positions[slot].min(axis=1), self._largest[slot]  # (B), (B)
            least = np.maximum(last + self._step, self._first)  # (B)
            rows = np.flatnonzero((smallest <= last) | (smallest < least))
            if rows.size:
                row = rows[0]
                rule = f"greater than those before them, {last[row]:g}"
                if least[row] > last[row]:
                    rule = f"at least {least[row]:g}"
                raise ValueError(
                    f"The positions in '{self._specs[slot].name}' of new tokens must be {rule} in "
                    f"row {row + 1} of {len(last)}: earlier tokens must not see later ones. "
                    f"Received: {smallest[row]:g}"
                )

    def following(self, count: int, step: float) -> dict[int, np.ndarray]:
        """The positions (B, count) or (B, count, axes) of tokens to come, by slot.

        Each is `step` behind the one before, the first behind the largest position of its row; all
        axes are the same, as in Qwen2-VL.

        Raises:
            ValueError: The dtype of the model's input cannot hold them, or earlier tokens would
                see them.
        """
        if self._compared and step < self._step:
            raise ValueError(
                f"`position_step` must be at least {self._step}: the `mask` of an attention layer "
                "lets earlier tokens see those less than that behind them, but for "
                f"`use_causal_mask=True`. Received: position_step={step:g}"
            )
        found = {}
        for slot, largest in self._largest.items():
            spec = self._specs[slot]
            exact = largest[:, None] + step * np.arange(1, count + 1)  # (B, count)
            most = np.iinfo(spec.dtype).max if "int" in spec.dtype else np.inf
            held = np.minimum(exact, most).astype(spec.dtype)  # (B, count)
            gaps = np.diff(held, axis=1, prepend=largest[:, None].astype(spec.dtype))
            if (gaps <= 0).any() or (exact > most).any():
                raise ValueError(
                    f"The positions in '{spec.name}' of new tokens, {step:g} apart, are not in "
                    f"order in {spec.dtype}. Subtract the first position of each row from all of "
                    f"them. Received: positions up to {largest.max():g}"
                )
            if len(spec.shape) == 3:
                held = np.repeat(held[:, :, None], spec.shape[2], axis=2)  # (B, count, axes)
            found[slot] = held
        self._check(found)
        return found


def is_counted(plan: Plan) -> bool:
    """Whether the positions that steps are given are integers, which go on by 1."""
    return all("int" in plan.program.specs[slot].dtype for slot in plan.step_inputs.values())


def check_position_step(plan: Plan, step: Any) -> None:
    """Refuses a distance of new tokens that does not fit the positions of a model.

    Args:
        plan: How the model is decoded.
        step: The distance, or None.
    """
    specs = [plan.program.specs[slot] for slot in sorted(set(plan.step_inputs.values()))]
    if step is None:
        names = [spec.name for spec in specs if "int" not in spec.dtype]
        if names:
            raise ValueError(
                f"The positions of new tokens are not known: the input {names} of the model holds "
                "real numbers. Set `position_step` to the distance from one token to the next, or "
                "use an `IncrementalDecoder` (in R `incremental_decoder()`), whose `step()` takes "
                "the position of each token."
            )
        return
    if not specs:
        raise ValueError(
            "`position_step` must be left out: no input of the model is the `positions` of its "
            f"attention layers. Received: position_step={step!r}"
        )
    is_whole = checks.is_number(step) and float(step).is_integer()
    counted = [spec.name for spec in specs if "int" in spec.dtype]
    if not checks.is_number(step) or not 0 < step < np.inf or (counted and not is_whole):
        rule = f"a whole number above 0, as the input {counted} holds integers"
        raise ValueError(
            f"`position_step` must be {rule if counted else 'a number above 0'}. "
            f"Received: position_step={step!r}"
        )
