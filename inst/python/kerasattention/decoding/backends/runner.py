"""The interface of a backend's runner, and the parts that the backends' runners share."""

from typing import Any, NamedTuple, Protocol

from keras import ops

from kerasattention.attend.tensors import Tensor
from kerasattention.decoding.cache.context import CacheContext, CrossKV, StepInfo
from kerasattention.decoding.cache.storage import CacheStorage
from kerasattention.decoding.graph.plan import Plan
from kerasattention.decoding.graph.run import (
    PromptValues,
    Values,
    as_logits,
    attach_masks,
    of_steps,
    run_per_prompt,
    run_per_token,
    take_token,
    with_mask_of_each,
)
from kerasattention.decoding.sampling import are_unusable, choose_tokens

# The tensors that prefill computes for the steps, besides the caches.
Kept = tuple[CrossKV, PromptValues]


class LoopState(NamedTuple):
    """The initial state of a loop over new tokens.

    Attributes:
        kind: How tokens are chosen; a compiled loop is made for each kind.
        numbers: Temperature, top_p and seed.
        tokens: (B), the last token of each row, chosen but not yet taken in.
        position: Index of those tokens.
        steps: The number of tokens to make at most.
        room: Columns of the result, at least `steps`.
        padding: None or (B), the number of padding tokens at the start of each row.
        finished: (B), the rows that make no more tokens and repeat their last one.
        stop: (n) tokens that finish a row.
        positions: (B, room, ...), the positions of the steps, by the slots that steps read.
    """

    kind: Any
    numbers: tuple[Any, ...]
    tokens: Tensor
    position: Any
    steps: Any
    room: int
    padding: Tensor | None
    finished: Tensor
    stop: Tensor
    positions: Values = {}  # noqa: RUF012


class LoopResult(NamedTuple):
    """The result of a loop over new tokens.

    Attributes:
        tokens: (B, room), of which `count` columns are made.
        finished: (B), the rows that make no more tokens.
        count: The number of steps.
        failed: The first step with unusable logits; `room` if there is none.
    """

    tokens: Tensor
    finished: Tensor
    count: int
    failed: int


class Runner(Protocol):
    """Holds the caches of one decoder, and runs its plan on a backend.

    Attributes:
        plan: How the model is decoded.
        max_length: The number of slots of a cache without a window.
        compiles: Whether each length of tokens is compiled, so that few lengths are wanted.
    """

    plan: Plan
    max_length: int
    compiles: bool

    def reset(self) -> None:
        """Forgets the prompt."""

    def prefill(self, inputs: Values, count: int, padding: Tensor | None) -> Tensor:
        """Logits (B, V) after a prompt, of which `count` tokens are real, into empty caches."""
        ...

    def extend(
        self,
        tokens: Tensor,
        position: int,
        count: int,
        padding: Tensor | None,
        given: Values | None = None,
    ) -> Tensor:
        """Logits (B, V) after `count` real tokens (B, t) that follow the cached ones.

        `given` holds what the step is given beside them, by slot.
        """
        ...

    def decode_loop(self, state: LoopState) -> LoopResult:
        """Feeds each chosen token back in, for a number of steps."""
        ...

    def full_pass(self, inputs: Values) -> Tensor:
        """The model's output (B, T, V) without caches."""
        ...


def cache_context(
    runner: Runner, storage: CacheStorage, info: StepInfo, cross_kv: CrossKV, tokens: Tensor
) -> CacheContext:
    """The context in which attention layers use a runner's caches, for tokens (B, t)."""
    return CacheContext(
        runner.plan.specs,
        storage,
        info,
        cross_kv,
        length=tokens.shape[1],
        max_length=runner.max_length,
    )


def traced_prefill(
    runner: Runner, storage: CacheStorage, inputs: Values, count: Any, padding: Tensor | None
) -> tuple[Tensor, Kept]:
    """`prefill()` in a function without side effects: the logits, and what the steps need."""
    plan, cross_kv = runner.plan, {}
    tokens = inputs[plan.tokens]
    values = run_per_prompt(plan, inputs)
    info = StepInfo(0, count, True, padding)
    context = cache_context(runner, storage, info, cross_kv, tokens)
    logits = run_per_token(plan, context, tokens, values)  # (B, V)
    return logits, (cross_kv, with_mask_of_each(of_steps(plan, values)))


def traced_extend(
    runner: Runner,
    storage: CacheStorage,
    kept: Kept,
    tokens: Tensor,
    position: Any,
    count: Any,
    padding: Tensor | None,
    given: Values | None = None,
) -> Tensor:
    """`extend()` in a function without side effects: the logits (B, V)."""
    cross_kv, prompt_values = kept
    info = StepInfo(position, count, False, padding)
    context = cache_context(runner, storage, info, cross_kv, tokens)
    values = attach_masks(prompt_values) | (given or {})
    return run_per_token(runner.plan, context, tokens, values)


def positions_at(state: LoopState, index: Any) -> Values:
    """The positions (B, 1, ...) of a step of a loop, by slot."""
    return {slot: take_token(x, index) for slot, x in state.positions.items()}


def choose_next(
    plan: Plan, state: LoopState, output: Tensor, position: Any, tokens: Tensor, finished: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The end of a step: the next token of each row.

    Args:
        plan: How the model is decoded.
        state: The initial state of the loop.
        output: (B, V) after the token at `position`.
        position: Index of `tokens`.
        tokens: (B), the tokens of this step.
        finished: (B), the rows that repeat their token.

    Returns:
        Tokens (B), finished rows (B), and whether logits were unusable, ().
    """
    logits = as_logits(plan, output)  # (B, V)
    chosen = choose_tokens(logits, state.kind, state.numbers, position + 1, state.padding)  # (B)
    tokens = ops.where(finished, tokens, chosen)  # (B)
    stopped = ops.any(ops.equal(tokens[:, None], state.stop[None]), axis=1)  # (B)
    return tokens, ops.logical_or(finished, stopped), ops.any(are_unusable(logits))
