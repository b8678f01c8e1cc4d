"""What of a model is done once, what for each token, and what cannot be decoded.

Layers known to act on each position alone are taken as they are. Any other is
tried out on a few random tokens: whole against piece by piece.
"""

import dataclasses
import enum
from collections.abc import Callable, Mapping
from typing import Any

import keras
from keras import ops, tree

from kerasattention.attend.tensors import Tensor
from kerasattention.decoding.cache.context import CacheContext, CacheSpec
from kerasattention.decoding.graph import layer_support, probe
from kerasattention.decoding.graph.program import Instruction, Program, lay_open
from kerasattention.layers.context import attention_context

# By the identity of an operation.
Calls = Mapping[int, Callable[..., Any]]


class Way(enum.Enum):
    """How an instruction is run on a few tokens of a sequence."""

    AS_IT_IS = 1  # its result at a token depends on that token, or it has a cache
    AT_INDEX = 2  # it depends on the token's index too: run on a full length


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a model is decoded.

    Attributes:
        program: The model's instructions.
        tokens: Slot of the tokens.
        once: Instructions that do not depend on the tokens.
        each: Those that do.
        ways: How each of them is run.
        specs: What each call of an attention layer keeps, in order of calls.
        lent: Slots that `once` fills and `each` reads, and the model's other inputs.
        tail: Index of the first of `each` behind which nothing looks at other tokens.
        static_length: T where the model was made for one length, else None.
        probabilities: Whether the output has gone through a softmax.
        tried: Names of the layers that are known by a trial only.
    """

    program: Program
    tokens: int
    once: tuple[Instruction, ...]
    each: tuple[Instruction, ...]
    ways: tuple[Way, ...]
    specs: tuple[CacheSpec, ...]
    lent: tuple[int, ...]
    tail: int
    static_length: int | None
    probabilities: bool
    tried: tuple[str, ...] = ()

    @property
    def other_inputs(self) -> tuple[int, ...]:
        return tuple(slot for slot in self.program.inputs if slot != self.tokens)

    @property
    def by_index(self) -> bool:
        """Whether any instruction depends on a token's index."""
        return Way.AT_INDEX in self.ways

    def vocabulary(self, slot: int) -> int | None:
        """How many ids an input may have: those that the embedding that reads it knows."""
        return layer_support.vocabulary(self.program, slot)


def make_plan(model: keras.Model, token_input: str | int | None = None) -> Plan:
    """Plans the decoding of a Functional or Sequential model.

    Args:
        model: The model.
        token_input: Name or index of the input that grows token by token; the last
            one by default.

    Raises:
        ValueError: A layer cannot be decoded; the message has its name and the reason.
    """
    program = lay_open(model)
    tokens = _token_slot(program, token_input)
    moving = program.depends_on(tokens)
    once = tuple(x for x in program.instructions if not moving.intersection(x.outputs))
    each = tuple(x for x in program.instructions if moving.intersection(x.outputs))
    if program.output not in moving:
        raise ValueError(f"The output of model '{model.name}' does not depend on its tokens.")
    length = program.specs[tokens].shape[1]
    ways, specs, tried = [], [], []
    tail = 0
    for position, instruction in enumerate(each):
        way, kept = _known(instruction, moving, program, length)
        if way is None:
            way, kept = _try_out(instruction, moving, program, length)
            tried.append(instruction.name)
        ways.append(way)
        specs += kept
        tail = position + 1 if kept else tail
    filled = set(program.inputs).union(*(x.outputs for x in once)) - moving
    read = {index for x in each for index in x.inputs}
    return Plan(
        program,
        tokens,
        once,
        each,
        tuple(ways),
        tuple(specs),
        tuple(sorted(filled & read)),
        tail,
        length,
        layer_support.ends_in_softmax(each[-1]),
        tuple(dict.fromkeys(tried)),
    )


def _token_slot(program: Program, token_input: str | int | None) -> int:
    slots = program.inputs
    names = [program.specs[slot].name for slot in slots]
    if token_input is None:
        token_input = len(slots) - 1
    known = token_input in names if isinstance(token_input, str) else token_input < len(slots)
    if not known:
        raise ValueError(
            f"`token_input` must name one of the inputs {names}. Received: {token_input!r}"
        )
    if isinstance(token_input, str):
        token_input = names.index(token_input)
    slot = slots[token_input]
    if len(program.specs[slot].shape) < 2:
        raise ValueError(
            "The tokens must have a batch and a time axis. "
            f"Received: input '{names[token_input]}' of shape {program.specs[slot].shape}"
        )
    return slot


def _known(
    instruction: Instruction, moving: set[int], program: Program, length: int | None
) -> tuple[Way | None, list[CacheSpec]]:
    """How to run an instruction on some tokens, None if not known, and its caches."""
    layer_support.refuse_known(instruction)
    layer_support.refuse_shape(instruction, length)
    if layer_support.is_our_attention(instruction.operation):
        return Way.AS_IT_IS, [layer_support.attention_spec(instruction, moving, program)]
    known = layer_support.acts_per_position(instruction, moving, program)
    return (Way.AS_IT_IS if known else None), []


def _try_out(
    instruction: Instruction, moving: set[int], program: Program, length: int | None
) -> tuple[Way, list[CacheSpec]]:
    with probe.without_changes(instruction):
        trial = probe.Trial(instruction, moving, program, length)
        if layer_support.holds_attention(instruction.operation):
            return Way.AS_IT_IS, trial.with_cache()
        return (Way.AS_IT_IS if trial.per_position() else Way.AT_INDEX), []


# Running it ---------------------------------------------------------------------


def run_whole(plan: Plan, inputs: dict[int, Tensor]) -> Tensor:
    """The model's output for whole sequences, without caches: (B, T, ...)."""
    values = dict(inputs)
    for instruction in plan.program.instructions:
        _run(instruction, values)
    return values[plan.program.output]


def run_once(plan: Plan, inputs: dict[int, Tensor]) -> dict[int, Tensor]:
    """What the instructions per token need of all others."""
    values = dict(inputs)
    for instruction in plan.once:
        _run(instruction, values)
    return {slot: values[slot] for slot in plan.lent}


def run_each(
    plan: Plan,
    context: CacheContext,
    tokens: Tensor,
    lent: dict[int, Tensor],
    max_length: int,
    calls: Calls | None = None,
) -> Tensor:
    """The output for the last real one of the tokens (B, t): (B, ...).

    `calls` has what to call in place of some operations.
    """
    moment = context.moment
    values = {plan.tokens: tokens, **lent}
    last_reader = {slot: i for i, x in enumerate(plan.each) for slot in x.inputs}
    length = tokens.shape[1]
    full_length = plan.static_length or max_length
    start = moment.start
    with attention_context(context):
        for position, instruction in enumerate(plan.each):
            if position == plan.tail and length > 1:
                at = (length if moment.count is None else moment.count) - 1
                _keep_one_token(values, lent, at)
                start, length = start + at, 1
            if plan.ways[position] is Way.AS_IT_IS:
                _run(instruction, values, calls)
            else:
                _run_at_index(instruction, values, lent, start, moment.padding, full_length)
            for slot in instruction.inputs:  # so that a long prompt's activations go
                if last_reader[slot] == position and slot != plan.program.output:
                    values.pop(slot, None)
        output = values[plan.program.output]
        if output.shape[1] > 1:
            last = (length if moment.count is None else moment.count) - 1
            return take_token(output, last)[:, 0]
    return output[:, 0]


def _run(instruction: Instruction, values: dict[int, Tensor], calls: Calls | None = None) -> None:
    args, kwargs = instruction.fill_in(values)
    operation = instruction.operation
    if calls:
        operation = calls.get(id(operation), operation)
    result = tree.flatten(operation(*args, **kwargs))
    values |= dict(zip(instruction.outputs, result, strict=True))


def _run_at_index(
    instruction: Instruction,
    values: dict[int, Tensor],
    lent: dict[int, Tensor],
    start: Any,
    padding: Tensor | None,
    full_length: int,
) -> None:
    """Puts the tokens at their indices of a full length, and takes the results from there."""
    moved = {slot: values[slot] for slot in instruction.inputs if slot not in lent}
    length = next(iter(moved.values())).shape[1]
    first = start if padding is None else start - padding[:, None]  # () or (B, 1)
    source = ops.arange(full_length, dtype="int32") - first
    source = ops.clip(source, 0, length - 1)
    target = ops.clip(ops.arange(length, dtype="int32") + first, 0, full_length - 1)
    local = dict(values)
    local |= {slot: take_times(x, source) for slot, x in moved.items()}
    _run(instruction, local)
    for slot in instruction.outputs:
        values[slot] = take_times(local[slot], target)


def take_times(x: Tensor, index: Tensor) -> Tensor:
    """x (B, T, ...) at indices (t) or (B, t) of its second axis."""
    if len(index.shape) == 1:
        return ops.take(x, index, axis=1)
    index = ops.reshape(index, (*ops.shape(index), *[1] * (len(x.shape) - 2)))
    return ops.take_along_axis(x, index, axis=1)


def take_token(x: Tensor, at: Any) -> Tensor:
    """x (B, T, ...) at one index: (B, 1, ...)."""
    if isinstance(at, int):
        return x[:, at : at + 1]
    return ops.take(x, ops.reshape(at, (1,)), axis=1)


def _keep_one_token(values: dict[int, Tensor], lent: dict[int, Tensor], at: Any) -> None:
    for slot in values:
        if slot not in lent:
            values[slot] = take_token(values[slot], at)


def as_logits(plan: Plan, output: Tensor) -> Tensor:
    """The model's output, or its logarithm where the model ends in a softmax."""
    return ops.log(output) if plan.probabilities else output
