"""The prompts of `generate()`, and how the results are given back in their form."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from kerasattention.decoding.inputs import check_token_ids

Tokens = Any


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Prompts of whatever form.

    Attributes:
        prompts: A vector of int32 for each.
        form: "vector", "matrix" or "list".
        copies: How many continuations each is given.
    """

    prompts: tuple[np.ndarray, ...]
    form: str
    copies: int

    @classmethod
    def of(cls, tokens: Tokens, copies: int) -> "Prompts":
        if isinstance(tokens, (list, tuple)) and tokens and np.ndim(tokens[0]) > 0:
            rows = [check_token_ids("tokens", np.asarray(row).reshape(-1)) for row in tokens]
            form = "list"
        else:
            tokens = ops.convert_to_numpy(tokens) if ops.is_tensor(tokens) else np.asarray(tokens)
            form = "vector" if tokens.ndim == 1 and copies == 1 else "matrix"
            if tokens.ndim not in (1, 2):
                raise ValueError(
                    "`tokens` must be a vector, a matrix (B, T) or a list of vectors. "
                    f"Received: shape {tokens.shape}"
                )
            rows = list(check_token_ids("tokens", np.atleast_2d(tokens)))
        if not rows or min(row.size for row in rows) == 0:
            raise ValueError("Each prompt must have at least one token.")
        return cls(tuple(rows), form, copies)

    @property
    def rows(self) -> int:
        """B, continuations of one prompt counted each."""
        return len(self.prompts) * self.copies

    @property
    def length(self) -> int:
        """Of the longest prompt."""
        return max(row.size for row in self.prompts)

    @property
    def repeated(self) -> list[np.ndarray]:
        """A row for each continuation."""
        return [row for row in self.prompts for _ in range(self.copies)]

    def joined(self, made: np.ndarray, stop: np.ndarray) -> np.ndarray | list[np.ndarray]:
        """The prompts with their continuations (B, n)."""
        pairs = list(zip(self.repeated, made, strict=True))
        if self.form == "list":  # of different lengths anyway: each ends with its stop token
            pairs = [(row, new[: _used(new, stop)]) for row, new in pairs]
        rows = [np.concatenate(pair).astype("int32") for pair in pairs]
        if self.form == "vector":
            return rows[0]
        return np.stack(rows) if self.form == "matrix" else rows


def as_stop(stop_token: int | Sequence[int] | None) -> np.ndarray:
    """Stop tokens (n) as int32."""
    stop = np.asarray([] if stop_token is None else stop_token).reshape(-1)
    if not stop.size:
        return stop.astype("int32")
    return check_token_ids("stop_token", stop, kind="`None` or token ids")


def _used(new: np.ndarray, stop: np.ndarray) -> int:
    ends = np.flatnonzero(np.isin(new, stop))
    return int(ends[0]) + 1 if ends.size else new.size
