"""Prompts and other tokens: checked, padded, and given back in the form of the prompts.

A token id that the model does not know is an error here: backends clamp it, wrap it round or
read beyond a table.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from kerasattention.attend.tensors import numpy_of
from kerasattention.decoding.cache.storage import MOST_IDS

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


def pad_left(tokens: Tokens) -> tuple[np.ndarray, np.ndarray | None]:
    """Prompts as one array, and the number of padding tokens (B) of each row or None.

    Raises:
        ValueError: One of several prompts of different lengths has no token.
    """
    is_list = isinstance(tokens, Sequence) and not isinstance(tokens, str)
    rows = [as_numpy(row) for row in tokens] if is_list else []
    if len({row.size for row in rows}) <= 1:
        return as_numpy(rows if is_list else tokens), None
    rows = [row.reshape(-1) for row in rows]
    if any(row.size == 0 for row in rows):
        raise ValueError("Each prompt must have at least one token.")
    length = max(row.size for row in rows)
    padding = np.array([length - row.size for row in rows], "int32")  # (B)
    padded = np.stack([np.pad(row, (length - row.size, 0)) for row in rows])  # (B, t)
    return padded, padding if padding.any() else None


def rounded_length(count: int) -> int:
    """A length to pad tokens to, so that few lengths are compiled."""
    wide = 8
    while wide < count and wide < 256:
        wide *= 2
    return wide if wide >= count else -(-count // 256) * 256


def pad_right(tokens: np.ndarray, length: int) -> np.ndarray:
    """Tokens (B, t, ...) with zeros up to a length."""
    missing = length - tokens.shape[1]
    widths = [(0, 0), (0, missing)] + [(0, 0)] * (tokens.ndim - 2)
    return np.pad(tokens, widths) if missing > 0 else tokens


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Prompts in any of the accepted forms.

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
            rows = [check_token_ids("tokens", as_numpy(row).reshape(-1)) for row in tokens]
            form = "list"
        else:
            tokens = as_numpy(tokens)
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


def as_numpy(x: Any) -> np.ndarray:
    if not ops.is_tensor(x):
        return np.asarray(x)
    if keras.backend.standardize_dtype(x.dtype) == "bfloat16":
        x = ops.cast(x, "float32")
    return numpy_of(x)


def _some(x: np.ndarray) -> str:
    shown = ", ".join(repr(value) for value in x.reshape(-1)[:3].tolist())
    return shown + (", ..." if x.size > 3 else "")
