"""`IncrementalDecoder`: a model's output token by token, with caches.

It has more than 300 lines because the methods of one public class and their checks stand together.
"""

import contextlib
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from kerasattention.attend.tensors import Tensor
from kerasattention.decoding.backends.runner import LoopState
from kerasattention.decoding.backends.select import check_can_decode, make_runner
from kerasattention.decoding.cache.storage import LengthError, cache_bytes, check_memory
from kerasattention.decoding.graph.plan import make_plan
from kerasattention.decoding.inputs import Inputs
from kerasattention.decoding.order import PositionOrder, check_position_step, is_counted
from kerasattention.decoding.prompts import pad_right, rounded_length
from kerasattention.decoding.recheck import ComparedRunner
from kerasattention.decoding.sampling import check_usable
from kerasattention.decoding.structure import Structure
from kerasattention.models.scores import with_our_layers

Tokens = Any

# The most tokens that one compiled loop makes before Python reads them.
CHUNK = 64


class IncrementalDecoder:
    """Decodes a Functional or Sequential model step by step, the model unchanged.

    The attention layers get KV caches, so that keys and values of earlier tokens are computed
    once; all other layers must act on each position separately. Layers and functions of your
    own are tried on random tokens, and the outputs for each prompt are compared with full
    passes of the model: the first at once, later ones each time that the number of tokens has
    doubled. The caches hold what the weights made of the tokens: when weights have changed,
    begin again with `prefill()`. Shapes: B batch, t new tokens, V the size of the output's last
    axis.

    Args:
        model: A Functional or Sequential model, nested ones and layers of your own
            included. Inputs (B, T) of tokens, or (B, T, D) of features; further
            inputs (an encoder's) are given to `prefill()`.
        batch_size: B.
        max_length: The most tokens of a row. Where every attention layer has a
            `sliding_window` that is no longer than this, rows may be longer.
        token_input: Name or index of the input that grows; by default the last one, leaving out
            those that are only the segments, spans or positions of attention layers.

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
        check_can_decode(model)
        self.batch_size, self.max_length = int(batch_size), int(max_length)
        self._token_input = token_input
        self._running = threading.Lock()
        self.is_broken = False
        self._model = weakref.ref(model)
        self.hold(model)
        self._make(model)

    def hold(self, model: keras.Model | None) -> None:
        """Keeps the model alive; None: no longer, since a pool must not keep its model."""
        self._held = model

    def is_current(self) -> bool:
        """Whether the model's structure is that which the decoder was made from."""
        return self._structure.is_current()

    def _make(self, model: keras.Model) -> None:
        self._structure = Structure(model)
        ours = with_our_layers(model)
        self._copy = None if ours is model else ours
        self.plan = make_plan(ours, self._token_input)
        limit = self.plan.static_length
        if limit is not None and self.max_length > limit and not self._takes_any_length():
            raise LengthError(
                f"`max_length` must be at most {limit}, the length that the model was made for. "
                f"Received: {self.max_length}"
            )
        self._check_rotations()
        size = self.cache_bytes
        if self.plan.by_index:  # layers that run on a full length each time
            size += 8 * self.batch_size * self.max_length
        check_memory(size, self.batch_size, self.max_length)
        self._inputs = Inputs(self.plan, self.batch_size)
        self._runner = make_runner(self.plan, ours, self.batch_size, self.max_length)
        self._length = self._prompt_length = 0
        self._padding: Tensor | None = None

    @property
    def length(self) -> int:
        """The number of tokens of each row so far, padding included."""
        return self._length

    @property
    def padding(self) -> Tensor | None:
        """(B): the number of padding tokens at the start of each row; None if there are none."""
        return self._padding

    @property
    def unlimited(self) -> bool:
        """Whether rows may be longer than `max_length`: all caches roll."""
        own = [spec for spec in self.plan.specs if not spec.cross]
        if any(spec.longest is not None for spec in self.plan.specs):
            return False
        return not self.plan.by_index and all(spec.rolls(self.max_length) for spec in own)

    @property
    def cache_bytes(self) -> int:
        """Size of the caches: 2 * B * S * K * H numbers per attention layer.

        B * S * (kv_rank + rotary_dim) of a `LatentAttention`.
        """
        return cache_bytes(self.plan.specs, self.batch_size, self.max_length)

    def prefill(self, tokens: Tokens, inputs: Any = None) -> Tensor:
        """Takes prompts in one pass.

        Args:
            tokens: (B, t) integers, or B sequences of different lengths, which are
                padded on the left and the padding masked. Features (B, t, D) for a
                model of such inputs. A vector is one row.
            inputs: The model's other inputs, a dictionary by name or a list in order. One that
                is the `segment_ids`, `bidirectional` or `positions` of attention layers holds a
                number for each token, (B, t), 0 for padding on the left; positions of several
                axes are (B, t, axes). Tokens after the prompt are in the last segment of their
                row, and in no span; `step()` takes their positions.

        Returns:
            Logits (B, V) for the token after each prompt; NaN where the model's are.

        Raises:
            ValueError: Shapes that do not fit, more tokens than `max_length`, caches
                in use; logits that differ from those of a full pass.
        """
        if self._length > 0:
            raise ValueError(
                f"The caches hold {self._length} tokens; call `reset()` before `prefill()`, or "
                "give further tokens to `step()`."
            )
        with self._exclusive():
            model = self._model()
            if model is not None and not self.is_current():
                self._make(model)
            tokens, padding = self._inputs.prompts(tokens)
            count = tokens.shape[1]
            self._check_room(count)
            self._check_prompt(count, padding)
            self._follow_weights()
            wide = pad_right(tokens, self._bucket(count, 0))
            others = self._inputs.others(inputs, count, wide.shape[1])
            given = {self.plan.tokens: ops.convert_to_tensor(wide), **others}
            self._order = PositionOrder(self.plan, others, count, padding)
            self._padding = None if padding is None else ops.convert_to_tensor(padding)
            with self._run():
                logits = self._runner.prefill(given, count, self._padding)
                self._length = self._prompt_length = count
            return logits

    def step(self, tokens: Tokens, inputs: Any = None) -> Tensor:
        """Takes the next token of each row, or several.

        Args:
            tokens: (B) or (B, t) integers; features (B, D) or (B, t, D).
            inputs: The positions of these tokens, (B) or (B, t), where an input of the model is
                the `positions` of attention layers; by name or in order. They must be greater
                than those of the tokens before. Those of several axes are (B, axes) or
                (B, t, axes), in any order. Integers may be left out: the largest position of the
                row so far, on any axis, plus 1, 2, ... on all axes, as in Qwen2-VL.

        Returns:
            Logits (B, V) for the token after them; NaN where the model's are.

        Raises:
            ValueError: Shapes that do not fit, or the context is full; among the first
                steps, logits that differ from those of a full pass.
        """
        if self._length == 0:
            raise ValueError("Call `prefill()` with a prompt of at least one token first.")
        with self._exclusive():
            self._check_unchanged()
            tokens = self._inputs.step(tokens)
            count = tokens.shape[1]
            self._check_room(count)
            if inputs is None and self.plan.step_inputs and is_counted(self.plan):
                positions = self._order.following(count, 1)
            else:
                positions = self._inputs.positions(inputs, count)
            self._order.add(positions)
            wide = pad_right(tokens, self._bucket(count, self._length))
            with self._run():
                logits = self._runner.extend(
                    ops.convert_to_tensor(wide),
                    self._length,
                    count,
                    self._padding,
                    self._inputs.step_values(positions),
                )
                self._length += count
            return logits

    def decode_loop(
        self,
        kind: Any,
        numbers: Any,
        last: Tensor,
        steps: int,
        finished: Tensor,
        stop: Tensor,
        position_step: float | None = None,
    ) -> tuple[Tensor, Tensor, int]:
        """Feeds each chosen token back in, all in the backend.

        Args:
            kind: Of a `Sampler`.
            numbers: Of a `Sampler`.
            last: (B) tokens that are chosen but not yet taken in.
            steps: The number of steps at most.
            finished: (B) booleans: rows that repeat their last token.
            stop: (n) tokens that finish a row.
            position_step: The distance of new tokens, where positions are given; None: 1.

        Returns:
            Tokens (B, at least `steps`), `finished`, and the number of steps made.
        """
        self.check_generates(position_step)
        with self._exclusive():
            self._check_unchanged()
            self._check_room(steps)
            positions = self._order.following(steps, position_step or 1)
            wide = {slot: pad_right(x, CHUNK) for slot, x in positions.items()}
            state = LoopState(
                *(kind, numbers, last, self._length, steps, CHUNK, self._padding, finished, stop),
                self._inputs.step_values(wide),
            )
            with self._run():
                made, finished, count, failed = self._runner.decode_loop(state)
                number = self._length - self._prompt_length + failed + 2
                self._length += count
                self._order.add({slot: x[:, :count] for slot, x in positions.items()})
            check_usable(failed < count, number)
            return made, finished, count

    def check_generates(self, position_step: float | None = None) -> None:
        """Refuses a model whose new tokens have positions that only the caller knows."""
        check_position_step(self.plan, position_step)

    def compare_rest(self) -> None:
        """Compares with the model what has not been compared yet, at the end of a generation."""
        if isinstance(self._runner, ComparedRunner):
            with self._exclusive(), self._run():
                self._runner.compare()

    def reset(self) -> None:
        """Forgets all tokens."""
        with self._exclusive(after_failure=True):
            self._length = 0
            self._padding = None
            if self.is_broken:  # the state of the caches is not known
                model = self._model() if self._copy is None else self._copy
                self._runner = make_runner(self.plan, model, self.batch_size, self.max_length)
                self.is_broken = False
            else:
                self._runner.reset()

    def room(self) -> int | None:
        """The number of tokens that still fit; None if there is no limit."""
        return None if self.unlimited else self.max_length - self._length

    # One run at a time ----------------------------------------------------------

    @contextlib.contextmanager
    def _exclusive(self, after_failure: bool = False) -> Iterator[None]:
        """Refuses a second thread: it would write into the caches of the first."""
        if not self._running.acquire(blocking=False):
            raise ValueError(
                "The decoder is running already, in another thread or in the call that this one "
                "was made from. Make an `IncrementalDecoder` for each, or use `generate()`."
            )
        try:
            if self.is_broken and not after_failure:
                raise ValueError("An earlier run was broken off; call `reset()` first.")
            yield
        finally:
            self._running.release()

    @contextlib.contextmanager
    def _run(self) -> Iterator[None]:
        """Marks the decoder as broken if a run ends early: its caches are then undefined."""
        self.is_broken = True
        yield
        self.is_broken = False

    def _check_unchanged(self) -> None:
        if not self.is_current():
            raise ValueError(
                "The model has been changed since `prefill()`: a layer, its options or its "
                "variables are others. Call `reset()` and `prefill()` with all tokens so far."
            )

    def _follow_weights(self) -> None:
        """A model with Keras's attention layers is decoded by a copy with ours."""
        model = self._model()
        if self._copy is not None and model is not None:
            for mine, theirs in zip(self._copy.weights, model.weights, strict=True):
                mine.assign(theirs)

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
        total = self._length + count
        for spec in self.plan.specs:
            if spec.mask is not None and not spec.cross:
                spec.mask.check_lengths(total, total)

    def _check_rotations(self) -> None:
        """Refuses rows beyond which cached keys would have to be rotated again."""
        for spec in self.plan.specs:
            if spec.longest is not None and self.max_length > spec.longest:
                raise LengthError(
                    f"`max_length` must be at most {spec.longest}, the "
                    f"`original_max_position_embeddings` of layer '{spec.layer}': its `scaling` "
                    "rotates the keys of longer sequences by other frequencies, and cached keys "
                    "are not rotated again. Set `length` in the `scaling` to use the frequencies "
                    f"of one length for all sequences. Received: {self.max_length}"
                )

    def _check_prompt(self, count: int, padding: np.ndarray | None) -> None:
        """Refuses a prompt whose tokens would see tokens that are still to come."""
        least = count if padding is None else count - int(padding.max())
        needed = max((spec.lookahead for spec in self.plan.specs if not spec.cross), default=0)
        if least < needed:
            raise ValueError(
                f"The first {needed} tokens see each other by the `mask` of an attention layer, so "
                f"each prompt must have at least {needed} tokens. Received: a prompt of {least}"
            )

    def _bucket(self, count: int, start: int) -> int:
        """A length to pad tokens to, so that few lengths are compiled."""
        if not self._runner.compiles or count == 1 or self.plan.step_inputs:
            return count  # tokens that are padding have no position
        wide = rounded_length(count)
        return wide if self.unlimited else min(wide, self.max_length - start)

    def _takes_any_length(self) -> bool:
        return not self.plan.by_index


def check_positive(name: str, x: Any) -> None:
    if isinstance(x, bool) or not isinstance(x, (int, np.integer)) or x < 1:
        raise ValueError(f"`{name}` must be a positive integer. Received: {x!r}")
