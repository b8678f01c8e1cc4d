"""`IncrementalDecoder`: a model's output token by token, with caches."""

import weakref
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from kerasattention.attend.tensors import Tensor
from kerasattention.decoding.memory import cache_bytes
from kerasattention.decoding.plan import make_plan
from kerasattention.models.scores import with_our_layers

Tokens = Any

# Most tokens that one compiled loop makes before Python looks at them.
CHUNK = 64


class IncrementalDecoder:
    """Decodes a Functional or Sequential model step by step, the model unchanged.

    The attention layers, whose keys and values of earlier tokens would be computed
    again for each token, are lent caches; all other layers must act on each
    position alone, which is known of a layer or tried out. Shapes: B batch, t new
    tokens, V the size of the output's last axis.

    Args:
        model: A Functional or Sequential model, nested ones and layers of your own
            included. Inputs (B, T) of tokens, or (B, T, D) of features; further
            inputs (an encoder's) are given to `prefill()`.
        batch_size: B.
        max_length: How many tokens a row may have. Where every attention layer has
            a `sliding_window`, no longer than this, rows may be longer.
        token_input: Name or index of the input that grows; the last by default.

    Raises:
        ValueError: A layer cannot be decoded per position; the message has the
            layer's name and the reason.
    """

    def __init__(
        self,
        model: keras.Model,
        batch_size: int,
        max_length: int,
        *,
        token_input: str | int | None = None,
    ) -> None:
        check_positive("batch_size", batch_size)
        check_positive("max_length", max_length)
        self.batch_size, self.max_length = batch_size, max_length
        ours = with_our_layers(model)
        self._copied = None if ours is model else (weakref.ref(model), ours)
        self.plan = make_plan(ours, token_input)
        limit = self.plan.static_length
        if limit is not None and max_length > limit and not self._takes_any_length():
            raise ValueError(
                f"`max_length` must be at most {limit}, the length that the model was made for. "
                f"Received: {max_length}"
            )
        self._runner = make_runner(self.plan, ours, batch_size, max_length)
        self.reset()

    @property
    def length(self) -> int:
        """How many tokens each row has so far, padding included."""
        return self._length

    @property
    def padding(self) -> Tensor | None:
        """(B): how many tokens at the start of each row are padding; None if none is."""
        return self._padding

    @property
    def unlimited(self) -> bool:
        """Whether rows may be longer than `max_length`: all caches roll."""
        own = [spec for spec in self.plan.specs if not spec.cross]
        return not self.plan.by_index and all(spec.rolls(self.max_length) for spec in own)

    @property
    def cache_bytes(self) -> int:
        """Size of the caches: 2 * B * S * K * H numbers per attention layer."""
        return cache_bytes(self.plan.specs, self.batch_size, self.max_length)

    def prefill(self, tokens: Tokens, inputs: Any = None) -> Tensor:
        """Takes prompts in one pass.

        Args:
            tokens: (B, t) integers, or B sequences of different lengths, which are
                padded on the left and the padding masked. Features (B, t, D) for a
                model of such inputs. A vector is one row.
            inputs: The model's other inputs, a dictionary by name or a list in order.

        Returns:
            Logits (B, V) for the token after each prompt.

        Raises:
            ValueError: Shapes that do not fit, more tokens than `max_length`, caches
                in use.
        """
        if self._length > 0:
            raise ValueError(
                f"The caches hold {self._length} tokens; call `reset()` before `prefill()`, or "
                "give further tokens to `step()`."
            )
        tokens, padding = self._as_rows(tokens)
        count = tokens.shape[1]
        self._check_room(count)
        self._follow_weights()
        others = self._other_inputs(inputs)
        wide = _pad_right(tokens, self._bucket(count, 0))
        given = {self.plan.tokens: ops.convert_to_tensor(wide), **others}
        self._padding = None if padding is None else ops.convert_to_tensor(padding)
        logits = self._runner.prompt(given, count, self._padding)
        self._length = count
        return logits

    def step(self, tokens: Tokens) -> Tensor:
        """Takes the next token of each row, or several.

        Args:
            tokens: (B) or (B, t) integers; features (B, D) or (B, t, D).

        Returns:
            Logits (B, V) for the token after them.

        Raises:
            ValueError: Shapes that do not fit, or the context is full.
        """
        if self._length == 0:
            raise ValueError("Call `prefill()` with a prompt of at least one token first.")
        tokens = self._as_step(tokens)
        count = tokens.shape[1]
        self._check_room(count)
        if count > 1:
            tokens = _pad_right(_to_numpy(tokens), self._bucket(count, self._length))
        tokens = ops.convert_to_tensor(tokens)
        logits = self._runner.after(tokens, self._length, count, self._padding)
        self._length += count
        return logits

    def loop(
        self, kind: Any, numbers: Any, last: Tensor, steps: int, finished: Tensor, stop: Tensor
    ) -> tuple[Tensor, Tensor, int]:
        """Steps that feed each chosen token back in, all in the backend.

        Args:
            kind: Of a `Sampler`.
            numbers: Of a `Sampler`.
            last: (B) tokens that are chosen but not yet taken in.
            steps: How many at most.
            finished: (B) booleans: rows that repeat their last token.
            stop: (n) tokens that finish a row.

        Returns:
            Tokens (B, at least `steps`), `finished`, and how many steps were made.
        """
        self._check_room(steps)
        made, finished, count = self._runner.loop(
            kind, numbers, last, self._length, steps, CHUNK, self._padding, finished, stop
        )
        self._length += count
        return made, finished, count

    def reset(self) -> None:
        """Forgets all tokens."""
        self._length = 0
        self._padding: Tensor | None = None
        self._runner.reset()

    def room(self) -> int | None:
        """How many more tokens fit; None if there is no limit."""
        return None if self.unlimited else self.max_length - self._length

    def _follow_weights(self) -> None:
        """A model with Keras's attention layers is decoded by a copy with ours."""
        original = None if self._copied is None else self._copied[0]()
        if original is not None:
            for mine, theirs in zip(self._copied[1].weights, original.weights, strict=True):
                mine.assign(theirs)

    # Inputs ---------------------------------------------------------------------

    @property
    def _spec(self) -> Any:
        return self.plan.program.specs[self.plan.tokens]

    def _as_rows(self, tokens: Tokens) -> tuple[np.ndarray, np.ndarray | None]:
        """(B, t, ...) and how much of each row is padding, if any."""
        padding = None
        if _is_ragged(tokens):
            rows = [np.asarray(row).reshape(-1) for row in tokens]
            if any(row.size == 0 for row in rows):
                raise ValueError("Each prompt must have at least one token.")
            length = max(row.size for row in rows)
            padding = np.array([length - row.size for row in rows], "int32")
            tokens = np.stack([np.pad(row, (length - row.size, 0)) for row in rows])
            padding = padding if padding.any() else None
        tokens = self._checked(_to_numpy(tokens))
        rank = len(self._spec.shape)
        if tokens.ndim == rank - 1:
            tokens = tokens[None]
        if tokens.ndim != rank or tokens.shape[0] != self.batch_size or tokens.shape[1] == 0:
            expected = (self.batch_size, "t", *self._spec.shape[2:])
            raise ValueError(
                f"`tokens` must have shape {_shape(expected)}, t at least 1. "
                f"Received: shape {tokens.shape}"
            )
        return tokens.astype(self._spec.dtype), padding

    def _as_step(self, tokens: Tokens) -> Any:
        rank = len(self._spec.shape)
        if not _is_tensor(tokens):
            tokens = self._checked(np.asarray(tokens))
            if tokens.ndim == 0:
                tokens = tokens[None]
        received = tuple(tokens.shape)
        if len(received) == rank - 1:
            tokens = tokens[:, None]
        if len(tokens.shape) != rank or tokens.shape[0] != self.batch_size or tokens.shape[1] < 1:
            expected = (self.batch_size, *self._spec.shape[2:])
            raise ValueError(
                f"`tokens` must have shape {_shape(expected)}, the next token of each row. "
                f"Received: shape {received}"
            )
        if keras.backend.standardize_dtype(tokens.dtype) != self._spec.dtype:
            tokens = ops.cast(tokens, self._spec.dtype)
        return tokens

    def _checked(self, tokens: np.ndarray) -> np.ndarray:
        if "int" in self._spec.dtype and tokens.dtype.kind == "f":
            if not np.all(tokens == np.floor(tokens)):
                raise ValueError("`tokens` must be whole numbers.")
        elif tokens.dtype.kind not in "iuf":
            raise ValueError(f"`tokens` must be numbers. Received: {tokens.dtype}")
        return tokens

    def _other_inputs(self, inputs: Any) -> dict[int, Tensor]:
        slots = self.plan.other_inputs
        specs = [self.plan.program.specs[slot] for slot in slots]
        names = [spec.name for spec in specs]
        if isinstance(inputs, dict):
            missing = [name for name in names if name not in inputs]
            given = [inputs[name] for name in names if name in inputs]
        else:
            given = [] if inputs is None else list(inputs) if len(slots) > 1 else [inputs]
            if len(slots) == 1 and isinstance(inputs, (list, tuple)) and len(inputs) == 1:
                given = list(inputs)
            missing = names[len(given) :]
        if missing or len(given) != len(slots):
            raise ValueError(
                f"`inputs` must hold the model's other inputs {names}. "
                + (f"Missing: {missing}" if missing else f"Received: {len(given)} of them")
            )
        return {
            slot: ops.cast(ops.convert_to_tensor(x), spec.dtype)
            for slot, x, spec in zip(slots, given, specs, strict=True)
        }

    # Lengths --------------------------------------------------------------------

    def _check_room(self, count: int) -> None:
        room = self.room()
        if room is not None and count > room:
            raise ValueError(
                f"The context is full: it holds {self._length} of `max_length` = "
                f"{self.max_length} tokens, and {count} more were given. Make a decoder with a "
                "larger `max_length`; only if every attention layer has a `sliding_window` may "
                "rows be longer."
            )

    def _bucket(self, count: int, start: int) -> int:
        """A length to pad tokens to, so that few lengths are compiled."""
        if not self._runner.compiles or count == 1:
            return count
        wide = 8
        while wide < count and wide < 256:
            wide *= 2
        wide = wide if wide >= count else -(-count // 256) * 256
        return wide if self.unlimited else min(wide, self.max_length - start)

    def _takes_any_length(self) -> bool:
        return not self.plan.by_index


def make_runner(plan: Any, model: keras.Model, batch: int, max_length: int) -> Any:
    """The runner of Keras's backend."""
    backend = keras.backend.backend()
    if backend == "jax":
        from kerasattention.decoding.runner_jax import Runner
    elif backend == "tensorflow":
        from kerasattention.decoding.runner_tensorflow import Runner
    elif backend == "torch":
        from kerasattention.decoding.runner_torch import Runner
    else:
        raise ValueError(f"Backend '{backend}' cannot decode; use tensorflow, jax or torch.")
    return Runner(plan, model, batch, max_length)


def check_positive(name: str, x: Any) -> None:
    if isinstance(x, bool) or not isinstance(x, (int, np.integer)) or x < 1:
        raise ValueError(f"`{name}` must be a positive integer. Received: {x!r}")


def _is_ragged(tokens: Tokens) -> bool:
    if not isinstance(tokens, Sequence) or isinstance(tokens, str):
        return False
    return len({np.size(row) for row in tokens}) > 1


def _is_tensor(x: Any) -> bool:
    return ops.is_tensor(x)


def _to_numpy(x: Any) -> np.ndarray:
    return ops.convert_to_numpy(x) if ops.is_tensor(x) else np.asarray(x)


def _pad_right(tokens: np.ndarray, length: int) -> np.ndarray:
    missing = length - tokens.shape[1]
    widths = [(0, 0), (0, missing)] + [(0, 0)] * (tokens.ndim - 2)
    return np.pad(tokens, widths) if missing > 0 else tokens


def _shape(sizes: tuple[Any, ...]) -> str:
    return "(" + ", ".join(str(size) for size in sizes) + ("," if len(sizes) == 1 else "") + ")"
