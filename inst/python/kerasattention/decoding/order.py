"""The order of positions that are given for each token.

A token after the prompt must be seen by none before it, whose result is known by then. Rules
compare positions, so those of new tokens must be behind all others.
"""

import numpy as np

from kerasattention.attend.tensors import Tensor
from kerasattention.decoding.graph.plan import Plan
from kerasattention.decoding.graph.prompt_arguments import POSITIONS
from kerasattention.decoding.prompts import as_numpy


class PositionOrder:
    """The last positions of the rows so far.

    Args:
        plan: How the model is decoded.
        inputs: The model's other inputs, by slot.
        count: t, the number of tokens of the prompts.
        padding: None, or (B), the number of padding tokens of each row.
    """

    def __init__(
        self, plan: Plan, inputs: dict[int, Tensor], count: int, padding: np.ndarray | None
    ) -> None:
        self._names = {slot: plan.program.specs[slot].name for slot in plan.prompt_inputs}
        given = {slot: as_numpy(inputs[slot])[:, :count] for slot in plan.prompt_inputs}  # (B, t)
        positions = [slot for slot, x in plan.prompt_inputs.items() if x == POSITIONS]
        self._last: dict[int, np.ndarray] = {}
        if not positions:
            return
        own = np.ones(given[positions[0]].shape, bool)  # (B, t)
        if padding is not None:
            own &= np.arange(count) >= padding[:, None]
        specs = [spec for spec in plan.specs if spec.position_dtype is not None and not spec.cross]
        if all(spec.segmented for spec in specs):
            for slot, argument in plan.prompt_inputs.items():
                if argument == "segment_ids":
                    own &= given[slot] == given[slot][:, -1:]
        # The first tokens may be seen by all others, as by a rule for a prefix.
        least = max((spec.lookahead for spec in specs), default=0) - 1
        for slot in positions:
            seen = np.where(own, given[slot], -np.inf).max(axis=1)  # (B)
            self._last[slot] = np.maximum(seen, least) if least >= 0 else seen

    def add(self, positions: dict[int, np.ndarray]) -> None:
        """Takes the positions (B, t) of new tokens, by slot.

        Raises:
            ValueError: One is not behind those before it.
        """
        for slot, given in positions.items():
            last = self._last[slot]
            for row, (smallest, before) in enumerate(zip(given.min(axis=1), last, strict=True)):
                if smallest <= before:
                    raise ValueError(
                        f"The positions in '{self._names[slot]}' of new tokens must be greater "
                        f"than those before them, {before:g} in row {row + 1} of {len(last)}: "
                        f"earlier tokens must not see later ones. Received: {smallest:g}"
                    )
        for slot, given in positions.items():
            self._last[slot] = np.maximum(self._last[slot], given.max(axis=1))
