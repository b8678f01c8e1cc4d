"""Checks a decoder's arguments against its model: tokens, and the model's other inputs."""

from typing import Any

import numpy as np
from keras import ops

from kerasattention.attend.tensors import Tensor
from kerasattention.decoding.graph.plan import Plan
from kerasattention.decoding.graph.prompt_arguments import POSITIONS, check_numbers
from kerasattention.decoding.prompts import as_numpy, check_token_ids, pad_left, pad_right

Tokens = Any

NO_OTHERS = "be left out: the tokens are the only input of the model"


class Inputs:
    """The inputs of a plan for rows of a batch.

    Args:
        plan: How the model is decoded.
        batch_size: B.
    """

    def __init__(self, plan: Plan, batch_size: int) -> None:
        self.plan, self.batch_size = plan, batch_size
        self.spec = plan.program.specs[plan.tokens]
        self.vocabulary = plan.vocabulary(plan.tokens)
        self.are_ids = "int" in self.spec.dtype or self.vocabulary is not None

    def prompts(self, tokens: Tokens) -> tuple[np.ndarray, np.ndarray | None]:
        """Prompts (B, t, ...), and the number of padding tokens of each row (B) or None."""
        tokens, padding = pad_left(tokens)
        tokens = self._checked(tokens)
        rank = len(self.spec.shape)
        if tokens.ndim == rank - 1:
            tokens = tokens[None]
        if tokens.ndim != rank or tokens.shape[0] != self.batch_size or tokens.shape[1] == 0:
            expected = (self.batch_size, "t", *self.spec.shape[2:])
            raise ValueError(
                f"`tokens` must have shape {_shape(expected)}, t at least 1. "
                f"Received: shape {tokens.shape}"
            )
        return tokens.astype(self.spec.dtype), padding

    def step(self, tokens: Tokens) -> np.ndarray:
        """(B, t, ...): the next token of each row, or several."""
        rank = len(self.spec.shape)
        tokens = self._checked(as_numpy(tokens))
        tokens = tokens[None] if tokens.ndim == 0 else tokens
        received = tokens.shape
        if tokens.ndim == rank - 1:
            tokens = tokens[:, None]
        if tokens.ndim != rank or tokens.shape[0] != self.batch_size or tokens.shape[1] < 1:
            expected = (self.batch_size, *self.spec.shape[2:])
            raise ValueError(
                f"`tokens` must have shape {_shape(expected)}, the next token of each row. "
                f"Received: shape {received}"
            )
        return tokens.astype(self.spec.dtype)

    def others(self, inputs: Any, count: int, wide: int) -> dict[int, Tensor]:
        """The model's other inputs by slot, given by name or in order.

        Args:
            inputs: A dictionary, a list, or the only one.
            count: t, the number of tokens of the prompts.
            wide: The length to which inputs with a number for each token are padded.
        """
        slots = self.plan.other_inputs
        specs = [self.plan.program.specs[slot] for slot in slots]
        names = [spec.name for spec in specs]
        if isinstance(inputs, dict):
            unknown = [name for name in inputs if name not in names]
            missing = [name for name in names if name not in inputs]
            given = [inputs[name] for name in names if name in inputs]
        else:
            given = _as_list(inputs, len(slots))
            unknown = [] if len(given) <= len(slots) else [f"{len(given)} inputs"]
            missing = names[len(given) :]
        if missing or unknown:
            problem = f"Missing: {missing}" if missing else f"Received: {unknown}"
            rule = f"hold the model's other inputs {names}" if names else NO_OTHERS
            raise ValueError(f"`inputs` must {rule}. {problem}")
        return {
            slot: self._of_prompt(slot, x, count, wide)
            if slot in self.plan.prompt_inputs
            else self._other(slot, x, spec)
            for slot, x, spec in zip(slots, given, specs, strict=True)
        }

    def _of_prompt(self, slot: int, x: Any, count: int, wide: int) -> Tensor:
        """(B, wide, ...): a number for each token of the prompts, 0 behind them."""
        spec, x = self.plan.program.specs[slot], as_numpy(x)
        argument = self.plan.prompt_inputs[slot]
        check_numbers(spec.name, argument, x, self._shape_of(spec, count), spec.dtype)
        return ops.convert_to_tensor(pad_right(x.astype(spec.dtype), wide))

    def positions(self, inputs: Any, count: int) -> dict[int, np.ndarray]:
        """The positions of a step's tokens, (B, count, ...), by the slot of the model's input.

        Args:
            inputs: A dictionary by name, a list in order, or the only one.
            count: The number of tokens of each row.
        """
        slots = sorted(set(self.plan.step_inputs.values()))
        names = [self.plan.program.specs[slot].name for slot in slots]
        if isinstance(inputs, dict):
            given = [inputs[name] for name in names if name in inputs]
            fits = len(given) == len(slots) == len(inputs)
        else:
            given = _as_list(inputs, len(slots))
            fits = len(given) == len(slots)
        if not fits:
            rule = f"hold the positions of the new tokens: {names}" if names else "be left out"
            raise ValueError(f"`inputs` of a step must {rule}. Received: {inputs!r}")
        found = {}
        for slot, x in zip(slots, given, strict=True):
            x, spec = as_numpy(x), self.plan.program.specs[slot]
            shape = self._shape_of(spec, count)
            if count == 1 and x.shape == (self.batch_size, *shape[2:]):
                x = x[:, None]
            check_numbers(spec.name, POSITIONS, x, shape, spec.dtype, "new tokens")
            found[slot] = x.astype(spec.dtype)
        return found

    def _shape_of(self, spec: Any, count: int) -> tuple[int, ...]:
        """The shape of an input with a number for each token, or of positions of several axes."""
        return (self.batch_size, count, *spec.shape[2:])

    def step_values(self, positions: dict[int, np.ndarray]) -> dict[int, Tensor]:
        """The same by the slots that the instructions of a step read."""
        specs = self.plan.program.specs
        return {
            slot: ops.convert_to_tensor(positions[source].astype(specs[slot].dtype))
            for slot, source in self.plan.step_inputs.items()
        }

    def _other(self, slot: int, x: Any, spec: Any) -> Tensor:
        vocabulary = self.plan.vocabulary(slot)
        if vocabulary is not None:
            x = check_token_ids(spec.name, as_numpy(x), vocabulary)
        x = ops.convert_to_tensor(x if ops.is_tensor(x) else np.asarray(x))
        if len(x.shape) != len(spec.shape) or x.shape[0] != self.batch_size:
            expected = (self.batch_size, *("t" if n is None else n for n in spec.shape[1:]))
            raise ValueError(
                f"The input '{spec.name}' must have shape {_shape(expected)}. "
                f"Received: shape {tuple(x.shape)}"
            )
        return ops.cast(x, spec.dtype)

    def _checked(self, tokens: np.ndarray) -> np.ndarray:
        if self.are_ids:
            return check_token_ids("tokens", tokens, self.vocabulary)
        if tokens.dtype.kind not in "iuf":
            raise ValueError(f"`tokens` must be numbers. Received: {tokens.dtype}")
        return tokens


def _as_list(inputs: Any, count: int) -> list[Any]:
    if inputs is None:
        return []
    if isinstance(inputs, (list, tuple)) and (count != 1 or len(inputs) == 1):
        return list(inputs)
    return [inputs]


def _shape(sizes: tuple[Any, ...]) -> str:
    return "(" + ", ".join(str(size) for size in sizes) + ("," if len(sizes) == 1 else "") + ")"
