"""Compares a decoder with full passes of its model, where only a trial accepted a layer.

A trial does not detect a layer that reads tokens further back than the trial is long, or one
whose result changes at an id, or at a coincidence of ids, that the trial did not draw. The
prompt and the tokens after it may show that at any time, so all are compared: the prompt at
once, the first steps together, later ones each time that the number of tokens has doubled, and
the rest at the end of `generate()`. That is at most about two passes more over all tokens.
"""

from keras import ops

from kerasattention.attend.tensors import Tensor, numpy_of
from kerasattention.decoding.backends.runner import (
    LoopResult,
    LoopState,
    Runner,
    choose_next,
    positions_at,
)
from kerasattention.decoding.graph.run import Values
from kerasattention.decoding.record import Record

# The number of steps after a prompt whose logits are compared, and a length up to which all are.
STEPS, LENGTH = 8, 16
# The most numbers held: 256 MiB of float32.
MOST_HELD = 2**26


class ComparedRunner:
    """A `Runner` whose logits or chosen tokens are compared with full passes.

    Rows that grow beyond `max_length`, since all their caches roll, are compared up to it.

    Args:
        runner: That of the backend, with caches.
    """

    def __init__(self, runner: Runner) -> None:
        self.runner, self.plan, self.max_length = runner, runner.plan, runner.max_length
        self.compiles = runner.compiles
        self._record: Record | None = None
        self._first_end = self._due = 0  # lengths

    def reset(self) -> None:
        self.runner.reset()
        self._record = None

    def prefill(self, inputs: Values, count: int, padding: Tensor | None) -> Tensor:
        """Compared at once."""
        logits = self.runner.prefill(inputs, count, padding)
        self._record = Record(self.plan, self.max_length, inputs, padding)
        self._record.note_logits(inputs[self.plan.tokens][:, :count], logits)
        self._first_end = max(count + STEPS, LENGTH)
        self.compare()
        return logits

    def extend(
        self,
        tokens: Tensor,
        position: int,
        count: int,
        padding: Tensor | None,
        given: Values | None = None,
    ) -> Tensor:
        """The first steps are compared at once."""
        record = self._record_with_room(count)
        logits = self.runner.extend(tokens, position, count, padding, given)
        if record is not None:
            is_first = record.length < self._first_end
            record.note_logits(tokens[:, :count], logits, given)
            if is_first or self._is_due(record):
                self.compare()
        return logits

    def full_pass(self, inputs: Values) -> Tensor:
        return self.runner.full_pass(inputs)

    def decode_loop(self, state: LoopState) -> LoopResult:
        """The first steps run one by one: their logits show more than the tokens chosen."""
        record = self._record_with_room(state.steps)
        if record is None:
            return self.runner.decode_loop(state)
        if record.length < self._first_end:
            result = self._first_steps(state, record)
        else:
            result = self.runner.decode_loop(state)
            if result.failed >= result.count:
                record.note_choices(state, result)
        if result.failed >= result.count and self._is_due(record):
            self.compare()
        return result

    def compare(self) -> None:
        """Compares all that was noted since the last comparison, by one full pass.

        Raises:
            ValueError: Logits or choices differ; the message has the layers' names.
        """
        record = self._record
        if record is None or record.is_compared():
            return
        record.compare(self.runner.full_pass(record.inputs()))
        first = record.length < self._first_end
        self._due = self._first_end if first else 2 * record.length

    def _first_steps(self, state: LoopState, record: Record) -> LoopResult:
        tokens, finished, made, failed = state.tokens, state.finished, [], state.room
        steps = min(state.steps, self._first_end - record.length)
        for at in range(state.position, state.position + steps):
            if made and state.stop.shape[0] and _holds_all(finished):
                break
            given = positions_at(state, len(made))
            logits = self.runner.extend(tokens[:, None], at, 1, state.padding, given)  # (B, V)
            record.note_logits(tokens[:, None], logits, given)
            tokens, finished, fails = choose_next(self.plan, state, logits, at, tokens, finished)
            made.append(tokens)
            if _holds_all(fails):
                failed = len(made) - 1
                break
        return LoopResult(ops.stack(made, axis=1), finished, len(made), failed)

    def _is_due(self, record: Record) -> bool:
        return record.length >= self._due or record.held > MOST_HELD

    def _record_with_room(self, count: int) -> Record | None:
        """The record if it may take so many tokens more; else it is compared and dropped."""
        if self._record is not None and self._record.length + count > self.max_length:
            self.compare()
            self._record = None
        return self._record


def _holds_all(x: Tensor) -> bool:
    return bool(numpy_of(x).all())
