"""A decoder's tokens and the logits or choices after them, compared with a full pass."""

import copy
from collections.abc import Iterator

import keras
import numpy as np
from keras import ops

from kerasattention.attend.tensors import Tensor, numpy_of
from kerasattention.decoding.backends.runner import LoopResult, LoopState
from kerasattention.decoding.graph.plan import Plan
from kerasattention.decoding.graph.prompt_arguments import POSITIONS, extended
from kerasattention.decoding.graph.run import Values, as_logits, take_times
from kerasattention.decoding.prompts import pad_right, rounded_length
from kerasattention.decoding.sampling import choose_tokens

# Relative to the largest logit of a row. Rounding in a deep model makes smaller differences.
TOLERANCE, LOW_TOLERANCE = 5e-3, 5e-2
# As many times nearer to the likeliest token than that a chosen one must be.
NEAR = 0.2


class Record:
    """Tokens, and the logits or choices after them that are still to be compared.

    Shapes: B rows, t tokens taken in together, n tokens chosen in a loop, V the size of the
    output's last axis.

    Args:
        plan: How the model is decoded.
        max_length: How many tokens a row may have.
        inputs: Inputs of the model by slot.
        padding: None, or (B), the number of padding tokens of each row.
    """

    def __init__(self, plan: Plan, max_length: int, inputs: Values, padding: Tensor | None) -> None:
        self.plan, self.max_length = plan, max_length
        self.tolerance = LOW_TOLERANCE if _is_low(plan) else TOLERANCE
        self._others = {slot: x for slot, x in inputs.items() if slot != plan.tokens}
        self._padding = None if padding is None else numpy_of(padding)  # (B)
        self._tokens: list[np.ndarray] = []  # (B, t, ...) each
        self._logits: list[tuple[int, Tensor]] = []  # index of a token, (B, ...) after it
        self._choices: list[_Choices] = []
        self._positions: dict[int, list[np.ndarray]] = {}  # (B, t, ...) of steps, by input
        self._prompt_length = self.length = 0

    @property
    def held(self) -> int:
        """How many numbers are held to be compared."""
        return sum(int(np.prod(x.shape)) for _, x in self._logits)

    def note_logits(self, tokens: Tensor, logits: Tensor, given: Values | None = None) -> None:
        """Notes tokens (B, t, ...), the logits (B, ...) after the last, and their positions."""
        self._take(numpy_of(tokens))
        self._take_positions(given or {})
        self._logits.append((self.length - 1, logits))

    def note_choices(self, state: LoopState, result: LoopResult) -> None:
        """Notes the tokens that a loop took in, and those that it chose after each."""
        chosen = numpy_of(result.tokens)[:, : result.count]  # (B, n)
        first = numpy_of(state.tokens)[:, None]  # (B, 1)
        self._take(np.concatenate([first, chosen[:, :-1]], axis=1))
        self._take_positions({slot: x[:, : result.count] for slot, x in state.positions.items()})
        self._choices.append(_Choices(state, chosen))

    def _take(self, tokens: np.ndarray) -> None:
        self._tokens.append(tokens)
        self.length += tokens.shape[1]
        self._prompt_length = self._prompt_length or self.length

    def _take_positions(self, given: Values) -> None:
        """Notes positions (B, t, ...) by the slots that steps read."""
        sources = {self.plan.step_inputs[slot]: x for slot, x in given.items()}
        for slot, x in sources.items():
            self._positions.setdefault(slot, []).append(numpy_of(x))

    def compare(self, output: Tensor) -> None:
        """Compares what is noted with the model's output (B, T, ...) for `inputs()`.

        Raises:
            ValueError: They differ; the message has the layers' names.
        """
        self._compare_logits(output)
        for choices in self._choices:
            self._compare_choices(choices, output)
        self._logits, self._choices = [], []

    def is_compared(self) -> bool:
        """Whether nothing is left to compare."""
        return not self._logits and not self._choices

    def inputs(self) -> Values:
        """The model's inputs for a full pass over all tokens.

        Each row starts at its first token; what follows the last token does not count.
        """
        tokens = np.concatenate(self._tokens, axis=1)  # (B, T, ...)
        self._tokens = [tokens]
        tokens = self._rolled(tokens)
        length = tokens.shape[1]
        if self.plan.static_length is not None:
            length = max(length, self.plan.static_length)
        elif keras.backend.backend() == "jax":  # compiled for each length
            length = max(length, min(rounded_length(length), self.max_length))
        rows = pad_right(tokens, length)
        wide = ops.convert_to_tensor(rows)
        return {self.plan.tokens: wide, **self._others, **self._for_tokens(rows.shape[1])}

    def _for_tokens(self, length: int) -> Values:
        """The inputs with a number for each token of the prompt, for rows of a length."""
        found = {}
        for slot, argument in self.plan.prompt_inputs.items():
            given = numpy_of(self._others[slot])[:, : self._prompt_length]  # (B, t)
            whole = np.concatenate([given, *self._positions.get(slot, [])], axis=1)
            whole = self._rolled(extended(argument, whole, self.length))  # (B, T)
            if argument == POSITIONS and self._padding is not None:
                # No token sees the padding behind it.
                is_padding = (
                    np.arange(self.length) >= self.length - self._padding[:, None]
                )  # (B, T)
                is_padding = is_padding.reshape(*is_padding.shape, *[1] * (whole.ndim - 2))
                whole = np.where(is_padding, whole.max(axis=1, keepdims=True) + 1, whole)
            whole = extended(argument, whole, length).astype(given.dtype)
            found[slot] = ops.convert_to_tensor(whole)
        return found

    def _rolled(self, x: np.ndarray) -> np.ndarray:
        """(B, T, ...) with the padding of each row behind its tokens."""
        if self._padding is None:
            return x
        pairs = zip(x, self._padding, strict=True)
        return np.stack([np.roll(row, -count, axis=0) for row, count in pairs])

    def _rows_at(self, output: Tensor, index: np.ndarray) -> Tensor:
        """The output (B, T, ...) after the tokens of this index (n): (B, n, ...)."""
        if self._padding is not None:
            index = index - self._padding[:, None]  # (B, n)
        return take_times(output, ops.convert_to_tensor(index.astype("int32")))

    # Logits -----------------------------------------------------------------------

    def _compare_logits(self, output: Tensor) -> None:
        if not self._logits:
            return
        found = np.stack([_to_numpy(x) for _, x in self._logits], axis=1)  # (B, n, ...)
        index = np.array([at for at, _ in self._logits])  # (n)
        expected = _to_numpy(self._rows_at(output, index))  # (B, n, ...)
        rows, count = found.shape[:2]
        found, expected = found.reshape(rows, count, -1), expected.reshape(rows, count, -1)
        for (row, number), scale in np.ndenumerate(_scales(expected)):
            theirs, ours = expected[row, number], found[row, number]
            most = self.tolerance * scale + 1e-6
            if np.allclose(ours, theirs, rtol=0.0, atol=most, equal_nan=True) and (
                _same_choice(ours, theirs, NEAR * most)
            ):
                continue
            with np.errstate(invalid="ignore"):
                gap = np.nanmax(np.abs(ours - theirs))
            raise self._difference(
                int(index[number]) + 1,
                f"the output for row {row + 1} of {rows} differs from that of a full pass of the "
                f"model: by up to {gap:.3g}, where its largest number is {scale:.3g}",
            )

    # Choices ----------------------------------------------------------------------

    def _compare_choices(self, choices: "_Choices", output: Tensor) -> None:
        """Chooses again from the logits of a full pass."""
        logits = as_logits(self.plan, self._rows_at(output, choices.index))  # (B, n, V)
        logits = ops.cast(ops.swapaxes(logits, 0, 1), "float32")  # (n, B, V)
        expected = choices.of(logits, choices.index, self._padding).T  # (B, n)
        for row, number in np.argwhere(choices.counts & (expected != choices.chosen)):
            alone = numpy_of(logits[number : number + 1])  # (1, B, V)
            if self._is_near(choices, alone, int(row), int(number)):
                continue
            raise self._difference(
                int(choices.index[number]) + 1,
                f"the token for row {row + 1} of {len(expected)} is {choices.chosen[row, number]}, "
                f"and that of a full pass of the model {expected[row, number]}",
            )

    def _is_near(self, choices: "_Choices", logits: np.ndarray, row: int, number: int) -> bool:
        """Whether logits (1, B, V) that differ by rounding alone give the token that was chosen."""
        if np.isnan(logits[0, row]).any():
            return False
        most = NEAR * (self.tolerance * _scales(logits)[0, row] + 1e-6)
        return any(
            self._gives(like, logits.copy(), row, number, most) for like in choices.near(most)
        )

    def _gives(
        self, choices: "_Choices", logits: np.ndarray, row: int, number: int, most: float
    ) -> bool:
        """Raises the logit of the token, and lowers each that is chosen in its place, once."""
        token = choices.chosen[row, number]
        index = choices.index[number : number + 1]  # (1)
        logits[0, row, token] += 2.0 * most  # relative to logits lowered by as much
        changed = {token}
        while True:
            rival = choices.of(ops.convert_to_tensor(logits), index, self._padding)[0, row]
            if rival == token or rival in changed:
                return rival == token
            changed.add(rival)
            logits[0, row, rival] -= most

    def _difference(self, after: int, what: str) -> ValueError:
        return ValueError(
            f"{_named(self.plan.tried)} accepted for decoding token by token because of a trial on "
            f"random tokens, but after {after} tokens {what}. A layer's result at a token must "
            "depend only on that token. Use layers that do, with attention for what looks at "
            "other tokens, or call the model on the whole sequence for each new token."
        )


class _Choices:
    """The tokens (B, n) that a loop chose, and how.

    Attributes:
        chosen: (B, n).
        index: (n), that of the token before each.
        counts: (B, n), whether the row had not ended before.
    """

    def __init__(self, state: LoopState, chosen: np.ndarray) -> None:
        self._kind, self._numbers = state.kind, state.numbers
        self.chosen = chosen
        self.index = int(state.position) + np.arange(chosen.shape[1])
        ends = np.isin(chosen, numpy_of(state.stop))  # (B, n)
        ended = np.cumsum(ends, axis=1) - ends > 0  # (B, n)
        self.counts = ~(ended | numpy_of(state.finished).astype(bool)[:, None])

    def near(self, most: float) -> "Iterator[_Choices]":
        """These, and those of probabilities that logits changed by `most` would give."""
        yield self
        if self._kind[2]:  # a nucleus
            temperature, top_p, seed = self._numbers
            for share in (-2.0 * most / temperature, 2.0 * most / temperature):
                like = copy.copy(self)
                like._numbers = (temperature, top_p * (1.0 + share), seed)
                yield like

    def of(self, logits: Tensor, index: np.ndarray, padding: np.ndarray | None) -> np.ndarray:
        """(n, B): the tokens chosen in the same way from logits (n, B, V)."""
        at = ops.convert_to_tensor((index[:, None] + 1).astype("int32"))  # (n, 1)
        counts = None if padding is None else ops.convert_to_tensor(padding, "int32")  # (B)
        return numpy_of(choose_tokens(logits, self._kind, self._numbers, at, counts))


def _named(names: tuple[str, ...]) -> str:
    listed = ", ".join(f"'{name}'" for name in names)
    return f"Layer {listed} was" if len(names) == 1 else f"Layers {listed} were"


def _scales(x: np.ndarray) -> np.ndarray:
    """The largest finite number of the last axis."""
    return np.where(np.isfinite(x), np.abs(x), 0.0).max(axis=-1)


def _same_choice(found: np.ndarray, expected: np.ndarray, most: float) -> bool:
    """Whether the likeliest token is the same, or nearly as likely."""
    if np.isnan(expected).any():
        return True
    chosen = expected[found.argmax()]
    return bool(chosen == expected.max() or expected.max() - chosen <= most)


def _is_low(plan: Plan) -> bool:
    """Whether any layer computes with few digits."""
    operations = [x.operation for x in plan.program.instructions]
    policies = [getattr(x, "dtype_policy", None) for x in operations]
    dtypes = [getattr(x, "compute_dtype", None) for x in policies]
    quantized = [getattr(x, "quantization_mode", None) for x in policies]
    return bool({"float16", "bfloat16"} & set(dtypes)) or any(x is not None for x in quantized)


def _to_numpy(x: Tensor) -> np.ndarray:
    if keras.backend.standardize_dtype(x.dtype) != "float64":
        x = ops.cast(x, "float32")
    return numpy_of(x)
