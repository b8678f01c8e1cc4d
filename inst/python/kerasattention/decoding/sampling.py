"""Choosing the next token from logits: greedy, temperature, top-k, top-p.

Random numbers are a hash of (seed, row, position, token), so the same seed gives
the same tokens on every backend, whether the loop runs in Python or compiled,
whatever the number of tokens asked for and however long the other prompts are.
"""

import dataclasses
from typing import Any, cast

import keras
from keras import ops

from kerasattention.attend.dropout import mix_bits
from kerasattention.attend.tensors import Tensor, numpy_of

# Below the first, no two logits in float32 are near enough for the less likely one to be drawn.
# Above the second, no two are far enough apart. Neither bound is 0 or infinite in float32.
LEAST_TEMPERATURE, MOST_TEMPERATURE = 1e-20, 1e30
# In place of an infinite logit, of which no difference can be taken.
_MOST = 3e38


@dataclasses.dataclass(frozen=True)
class Sampler:
    """How tokens are chosen.

    Attributes:
        temperature: 0 takes the likeliest token; else logits are divided by it.
        top_k: None, or how many of the likeliest tokens are drawn from.
        top_p: None, or the probability that the tokens drawn from have together at
            least (nucleus sampling, Holtzman et al. 2020,
            https://arxiv.org/abs/1904.09751).
        seed: Integer; None draws one from Keras's global generator.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        _check_number("temperature", self.temperature, 0.0, None)
        if self.top_k is not None and (not _is_integer(self.top_k) or self.top_k < 1):
            raise ValueError(
                f"`top_k` must be `None` or a positive integer. Received: {self.top_k!r}"
            )
        if self.top_p is not None:
            _check_number("top_p", self.top_p, 0.0, 1.0)
            if self.top_p == 0.0:
                raise ValueError("`top_p` must be greater than 0. Received: 0")
        if self.seed is not None and not _is_integer(self.seed):
            raise ValueError(f"`seed` must be `None` or an integer. Received: {self.seed!r}")

    @property
    def kind(self) -> tuple[bool, int | None, bool]:
        """The options that decide the operations: compiled once per kind."""
        if self.temperature < LEAST_TEMPERATURE:
            return (True, None, False)
        return (False, self.top_k, self.top_p is not None and self.top_p < 1.0)

    def numbers(self) -> tuple[float, float, int]:
        """The options that change without compiling again: temperature, top_p, seed."""
        seed = self.seed
        if seed is None:
            seed = int(numpy_of(keras.random.randint((), 0, 2**31 - 1)))
        top_p = 1.0 if self.top_p is None else self.top_p
        return float(min(self.temperature, MOST_TEMPERATURE)), float(top_p), int(seed) % (2**31)


def choose_tokens(
    logits: Tensor,
    kind: tuple[bool, int | None, bool],
    numbers: tuple[Any, Any, Any],
    at: Any,
    padding: Tensor | None = None,
) -> Tensor:
    """The next token of each row.

    Args:
        logits: (B, V), or (n, B, V) for tokens at n indices.
        kind: Of a `Sampler`.
        numbers: Of a `Sampler`.
        at: Index of the tokens in the rows, (), or (n, 1).
        padding: None, or (B): the number of padding tokens of a row, which do not count.

    Returns:
        (B) or (n, B) int32.
    """
    greedy, top_k, nucleus = kind
    temperature, top_p, seed = numbers
    logits = ops.cast(logits, "float32")
    if greedy:
        return ops.cast(ops.argmax(logits, axis=-1), "int32")
    logits = ops.minimum(logits, _MOST)
    # The likeliest is at 0: a small temperature makes no infinite numbers of it.
    logits = (logits - ops.max(logits, axis=-1, keepdims=True)) / temperature
    at = at if padding is None else at - padding  # (), (n, 1), (B) or (n, B)
    at = at[..., None] if getattr(at, "shape", ()) else at
    if top_k is not None and top_k < logits.shape[-1]:
        return _choose_among(logits, top_k, top_p if nucleus else None, seed, at)
    if nucleus:
        logits = ops.where(in_nucleus(logits, top_p), logits, float("-inf"))
    noise = gumbel_noise(seed, at, ops.shape(logits)[-2], ops.arange(logits.shape[-1]))
    return ops.cast(ops.argmax(logits + noise, axis=-1), "int32")


def are_unusable(logits: Tensor) -> Tensor:
    """(B): whether the logits (B, V) of a row have a NaN, or leave no token possible."""
    best = ops.max(logits, axis=-1)
    if keras.backend.backend() == "torch":  # whose maximum is NaN if any is; not so under XLA
        return ops.logical_not(best > float("-inf"))
    return ops.logical_or(ops.any(ops.isnan(logits), axis=-1), best == float("-inf"))


def check_usable(unusable: bool, number: int) -> None:
    """Refuses to choose the new token of this number, counted from 1."""
    if unusable:
        raise ValueError(
            f"The model's logits for new token {number} are NaN, or -Inf for all tokens, so none "
            "can be chosen. Look at the model's weights and at its output for these tokens."
        )


def _choose_among(logits: Tensor, top_k: int, top_p: Any, seed: Any, at: Any) -> Tensor:
    """A token among the k likeliest, which `top_k()` sorts."""
    values, tokens = cast("tuple[Tensor, Tensor]", ops.top_k(logits, top_k))
    if top_p is not None:
        values = ops.where(_within(values, top_p), values, float("-inf"))
    noise = gumbel_noise(seed, at, ops.shape(logits)[-2], tokens)
    best = ops.argmax(values + noise, axis=-1)
    return ops.cast(ops.take_along_axis(tokens, best[..., None], axis=-1)[..., 0], "int32")


def _within(values: Tensor, top_p: Any) -> Tensor:
    """Which of sorted logits are needed to reach the probability; the first always is."""
    probabilities = ops.softmax(values, axis=-1)
    before = ops.cumsum(probabilities, axis=-1) - probabilities
    return before < top_p


def in_nucleus(logits: Tensor, top_p: Any) -> Tensor:
    """(B, V): which tokens are in the smallest set that has the probability.

    By bisection: sorting a large vocabulary takes longer than a small model's step.
    """
    largest = ops.max(logits, axis=-1, keepdims=True)
    shifted = logits - largest
    weights = ops.exp(shifted)
    wanted = top_p * ops.sum(weights, axis=-1, keepdims=True)
    low = ops.full_like(largest, -88.0)  # exp(-88) is the least float32
    high = ops.zeros_like(largest)
    # The tokens above `low` always reach the probability; the interval ends below float32's steps.
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        mass = ops.sum(ops.where(shifted >= middle, weights, 0.0), axis=-1, keepdims=True)
        enough = mass >= wanted
        low, high = ops.where(enough, middle, low), ops.where(enough, high, middle)
    # Not `logits >= low + maximum`: rounding could leave the last one out.
    return shifted >= low


_BISECTIONS = 30


def gumbel_noise(seed: Any, at: Any, rows: Any, tokens: Tensor) -> Tensor:
    """(B, V) or (n, B, V): the largest of logits plus this noise is a draw of their softmax.

    Args:
        seed: Integer scalar.
        at: Position of the tokens: (), (B, 1), (n, 1, 1) or (n, B, 1).
        rows: B.
        tokens: (V), (B, V) of each row, or (n, B, V).
    """
    row = ops.arange(rows, dtype="int32")[:, None]
    tokens = ops.cast(tokens, "int32")
    tokens = tokens[None] if len(tokens.shape) == 1 else tokens
    stream = mix_bits(mix_bits(row + seed) + at)
    bits = mix_bits(mix_bits(stream ^ mix_bits(tokens + 1)) + seed)
    # 23 bits, and a half so that neither 0 nor 1 comes out.
    uniform = (ops.cast(ops.bitwise_and(bits, 2**23 - 1), "float32") + 0.5) * 2.0**-23
    return -ops.log(-ops.log(uniform))


def _check_number(name: str, x: Any, least: float, most: float | None) -> None:
    number = isinstance(x, (int, float)) and not isinstance(x, bool)
    if not number or not x >= least or (most is not None and x > most) or x == float("inf"):
        between = f"at least {least:g}" + ("" if most is None else f" and at most {most:g}")
        raise ValueError(f"`{name}` must be a number, {between}. Received: {x!r}")


def _is_integer(x: Any) -> bool:
    return isinstance(x, int) and not isinstance(x, bool)
