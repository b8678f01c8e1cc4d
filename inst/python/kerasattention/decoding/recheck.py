"""Compares a decoder with full passes of its model, where only a trial accepted a layer.

A trial does not detect a layer that reads tokens further back than the trial is long, or one
whose result changes at an id that the trial did not draw. The real prompt and the first tokens
after it may show that. A look-back that is longer than the compared tokens is not detected.
"""

from collections.abc import Callable

import keras
import numpy as np
from keras import ops

from kerasattention.attend.tensors import Tensor, numpy_of
from kerasattention.decoding.backends.runner import LoopResult, LoopState, Runner, choose_next
from kerasattention.decoding.graph.plan import Plan
from kerasattention.decoding.graph.run import Values, take_times
from kerasattention.decoding.prompts import pad_right, rounded_length

# The number of steps after a prompt that are compared, and a length up to which all are.
STEPS, LENGTH = 8, 16
# Relative to the largest logit of a row. Rounding in a deep model makes smaller differences.
TOLERANCE, LOW_TOLERANCE = 5e-3, 5e-2


class ComparedRunner:
    """A `Runner` whose first logits after a prompt are compared with full passes.

    Args:
        runner: That of the backend, with caches.
    """

    def __init__(self, runner: Runner) -> None:
        self.runner, self.plan, self.max_length = runner, runner.plan, runner.max_length
        self.compiles = runner.compiles
        self._first = FirstTokens(self.plan, self.max_length)

    def reset(self) -> None:
        self.runner.reset()
        self._first = FirstTokens(self.plan, self.max_length)

    def prefill(self, inputs: Values, count: int, padding: Tensor | None) -> Tensor:
        """Compared at once."""
        logits = self.runner.prefill(inputs, count, padding)
        self._first = FirstTokens(self.plan, self.max_length, inputs, padding)
        self._first.note(inputs[self.plan.tokens][:, :count], logits)
        self.compare()
        return logits

    def extend(self, tokens: Tensor, position: int, count: int, padding: Tensor | None) -> Tensor:
        """Compared at once."""
        logits = self.runner.extend(tokens, position, count, padding)
        if self._first.steps_left:
            self._first.note(tokens[:, :count], logits)
            self.compare()
        return logits

    def full_pass(self, inputs: Values) -> Tensor:
        return self.runner.full_pass(inputs)

    def decode_loop(self, state: LoopState) -> LoopResult:
        """The first steps run one by one, and are compared once, after the last of them."""
        if not self._first.steps_left:
            return self.runner.decode_loop(state)
        tokens, finished, made, failed = state.tokens, state.finished, [], state.room
        for at in range(state.position, state.position + min(state.steps, self._first.steps_left)):
            if made and state.stop.shape[0] and _holds_all(finished):
                break
            logits = self.runner.extend(tokens[:, None], at, 1, state.padding)  # (B, V)
            self._first.note(tokens[:, None], logits)
            tokens, finished, fails = choose_next(self.plan, state, logits, at, tokens, finished)
            made.append(tokens)
            if _holds_all(fails):
                failed = len(made) - 1
                break
        if not self._first.steps_left and failed == state.room:
            self.compare()
        return LoopResult(ops.stack(made, axis=1), finished, len(made), failed)

    def compare(self) -> None:
        """Compares the logits noted since the last comparison, by one full pass.

        Raises:
            ValueError: The logits differ; the message has the layers' names.
        """
        self._first.compare(self.runner.full_pass)


class FirstTokens:
    """A prompt, the first tokens after it, and a decoder's logits after each of them.

    Args:
        plan: How the model is decoded.
        max_length: How many tokens a row may have.
        inputs: Inputs of the model by slot; none before the first prompt.
        padding: None, or (B), the number of padding tokens of each row.
    """

    def __init__(
        self,
        plan: Plan,
        max_length: int,
        inputs: Values | None = None,
        padding: Tensor | None = None,
    ) -> None:
        self.plan, self.max_length = plan, max_length
        self.tolerance = LOW_TOLERANCE if _is_low(plan) else TOLERANCE
        self._others = {slot: x for slot, x in (inputs or {}).items() if slot != plan.tokens}
        self._padding = None if padding is None else numpy_of(padding)  # (B)
        self._tokens: list[np.ndarray] = []  # (B, t, ...) each
        self._noted: list[tuple[int, Tensor]] = []  # index of a token, (B, ...) after it
        self._steps, self._length = -1, 0  # the prompt is no step
        self._is_open = inputs is not None

    @property
    def steps_left(self) -> int:
        """The number of steps still to be noted."""
        return max(0, STEPS - self._steps, LENGTH - self._length) if self._is_open else 0

    def note(self, tokens: Tensor, logits: Tensor) -> None:
        """Notes tokens (B, t, ...), and the logits after the last of them."""
        self._tokens.append(numpy_of(tokens))
        self._steps += 1
        self._length += tokens.shape[1]
        self._noted.append((self._length - 1, logits))

    def compare(self, whole_pass: Callable[[Values], Tensor]) -> None:
        """One full pass over the tokens so far, for all logits noted since the last one."""
        if not self._noted:
            return
        found = np.stack([_to_numpy(x) for _, x in self._noted], axis=1)  # (B, n, ...)
        index = np.array([at for at, _ in self._noted], "int32")  # (n)
        if self._padding is not None:
            index = index - self._padding[:, None]  # (B, n)
        inputs = {self.plan.tokens: ops.convert_to_tensor(self._rows()), **self._others}
        output = whole_pass(inputs)  # (B, T, ...)
        expected = _to_numpy(take_times(output, ops.convert_to_tensor(index)))  # (B, n, ...)
        self._refuse_difference(found, expected)
        self._noted = []
        if not self.steps_left:
            self._tokens, self._is_open = [], False

    def _rows(self) -> np.ndarray:
        """Each row from its first token on; what follows the last token does not count."""
        tokens = np.concatenate(self._tokens, axis=1)
        if self._padding is not None:
            pairs = zip(tokens, self._padding, strict=True)
            tokens = np.stack([np.roll(row, -count, axis=0) for row, count in pairs])
        length = tokens.shape[1]
        if self.plan.static_length is not None:
            length = max(length, self.plan.static_length)
        elif keras.backend.backend() == "jax":  # compiled for each length
            length = max(length, min(rounded_length(length), self.max_length))
        return pad_right(tokens, length)

    def _refuse_difference(self, found: np.ndarray, expected: np.ndarray) -> None:
        rows, count = found.shape[:2]
        found, expected = found.reshape(rows, count, -1), expected.reshape(rows, count, -1)
        for (row, number), scale in np.ndenumerate(_scales(expected)):
            theirs, ours = expected[row, number], found[row, number]
            most = self.tolerance * scale + 1e-6
            if np.allclose(ours, theirs, rtol=0.0, atol=most, equal_nan=True) and (
                _same_choice(ours, theirs, 0.2 * most)
            ):
                continue
            after = self._noted[number][0] + 1
            with np.errstate(invalid="ignore"):
                gap = np.nanmax(np.abs(ours - theirs))
            raise ValueError(
                f"{_named(self.plan.tried)} accepted for decoding token by token because of a "
                f"trial on random tokens, but after {after} tokens the output for row {row + 1} of "
                f"{rows} differs from that of a full pass of the model: by up to {gap:.3g}, where "
                f"its largest number is {scale:.3g}. A layer's result at a token must depend only "
                "on that token. Use layers that do, with attention for what looks at other "
                "tokens, or call the model on the whole sequence for each new token."
            )


def _named(names: tuple[str, ...]) -> str:
    listed = ", ".join(f"'{name}'" for name in names)
    return f"Layer {listed} was" if len(names) == 1 else f"Layers {listed} were"


def _holds_all(x: Tensor) -> bool:
    return bool(numpy_of(x).all())


def _scales(x: np.ndarray) -> np.ndarray:
    """(B, n): the largest finite number."""
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
