"""What a decoder is given, checked: tokens, and a model's other inputs.

A token id that the model does not know is an error here: backends clamp it, wrap it round or
read beyond a table.
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from kerasattention.attend.tensors import Tensor
from kerasattention.decoding.cache.storage import MOST_IDS
from kerasattention.decoding.graph.plan import Plan

Tokens = Any


def check_token_ids(
    name: str, tokens: np.ndarray, vocabulary: int | None = None, kind: str = "token ids"
) -> np.ndarray:
    """Token ids as int32.

    Args:
        name: Of the argument.
        tokens: Numbers of any dtype.
        vocabulary: How many ids the model knows, if that is known.
        kind: What the argument must be, for the message.

    Raises:
        ValueError: Some are no whole numbers, below 0 or too large.
    """
    limit = MOST_IDS if vocabulary is None else min(vocabulary, MOST_IDS)
    known = "" if vocabulary is None else f", the model has {vocabulary}"
    rule = f"`{name}` must be {kind}: whole numbers from 0 to {limit - 1}{known}."
    if tokens.dtype.kind not in "iuf":
        raise ValueError(f"{rule} Received: {_some(tokens)}")
    with np.errstate(invalid="ignore"):
        bad = (tokens < 0) | (tokens >= limit) | (tokens != np.floor(tokens))
    if bad.any():
        raise ValueError(f"{rule} Received: {_some(tokens[bad])}")
    return tokens.astype("int32")


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
        """(B, t, ...) and how much of each row is padding, if any."""
        padding = None
        if _is_ragged(tokens):
            rows = [_to_numpy(row).reshape(-1) for row in tokens]
            if any(row.size == 0 for row in rows):
                raise ValueError("Each prompt must have at least one token.")
            length = max(row.size for row in rows)
            padding = np.array([length - row.size for row in rows], "int32")
            tokens = np.stack([np.pad(row, (length - row.size, 0)) for row in rows])
            padding = padding if padding.any() else None
        tokens = self._checked(_to_numpy(tokens))
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
        tokens = self._checked(_to_numpy(tokens))
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

    def others(self, inputs: Any) -> dict[int, Tensor]:
        """The model's other inputs by slot, given by name or in order."""
        slots = self.plan.other_inputs
        specs = [self.plan.program.specs[slot] for slot in slots]
        names = [spec.name for spec in specs]
        if isinstance(inputs, dict):
            unknown = [name for name in inputs if name not in names]
            missing = [name for name in names if name not in inputs]
            given = [inputs[name] for name in names if name in inputs]
        else:
            given = _as_list(inputs, len(slots))
            unknown = [] if len(given) <= len(slots) else [f"{len(given)} of them"]
            missing = names[len(given) :]
        if missing or unknown:
            problem = f"Missing: {missing}" if missing else f"Received: {unknown}"
            raise ValueError(f"`inputs` must hold the model's other inputs {names}. {problem}")
        return {
            slot: self._other(slot, x, spec)
            for slot, x, spec in zip(slots, given, specs, strict=True)
        }

    def _other(self, slot: int, x: Any, spec: Any) -> Tensor:
        vocabulary = self.plan.vocabulary(slot)
        if vocabulary is not None:
            x = check_token_ids(spec.name, _to_numpy(x), vocabulary)
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


def _is_ragged(tokens: Tokens) -> bool:
    if not isinstance(tokens, Sequence) or isinstance(tokens, str):
        return False
    return len({np.size(row) for row in tokens}) > 1


def _to_numpy(x: Any) -> np.ndarray:
    if not ops.is_tensor(x):
        return np.asarray(x)
    if keras.backend.standardize_dtype(x.dtype) == "bfloat16":
        x = ops.cast(x, "float32")
    return ops.convert_to_numpy(x)


def _some(x: np.ndarray) -> str:
    shown = ", ".join(repr(value) for value in x.reshape(-1)[:3].tolist())
    return shown + (", ..." if x.size > 3 else "")


def _shape(sizes: tuple[Any, ...]) -> str:
    return "(" + ", ".join(str(size) for size in sizes) + ("," if len(sizes) == 1 else "") + ")"


def rounded_length(count: int) -> int:
    """A length to pad tokens to, so that few lengths are compiled."""
    wide = 8
    while wide < count and wide < 256:
        wide *= 2
    return wide if wide >= count else -(-count // 256) * 256


def pad_right(tokens: np.ndarray, length: int) -> np.ndarray:
    missing = length - tokens.shape[1]
    widths = [(0, 0), (0, missing)] + [(0, 0)] * (tokens.ndim - 2)
    return np.pad(tokens, widths) if missing > 0 else tokens
