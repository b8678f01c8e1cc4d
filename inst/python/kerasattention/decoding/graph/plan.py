"""Which calls of a model run once per prompt, which run per token, and what is refused.

Layers that are known to act on each position separately run unchanged. Any other layer is
tried on random tokens: its output for the whole sequence against that for parts of it.
"""

import dataclasses
import enum

import keras

from kerasattention.decoding.cache.spec import CacheSpec
from kerasattention.decoding.graph import layer_support, probe
from kerasattention.decoding.graph.program import Instruction, Program, flatten_graph
from kerasattention.decoding.graph.prompt_arguments import (
    is_argument_only,
    prompt_inputs,
    step_inputs,
    step_instruction,
)


class Execution(enum.Enum):
    """How an instruction is run on a few tokens of a sequence."""

    DIRECT = 1  # its result at a token depends on that token only, or it has a cache
    AT_INDEX = 2  # its result depends on the token's index too: run on a full length


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a model is decoded.

    Attributes:
        program: The model's instructions.
        tokens: Slot of the tokens.
        per_prompt: Instructions that do not depend on the tokens.
        per_token: Those that do, at prefill.
        per_step: The same for the tokens after a prompt: without the arguments of a prompt.
        executions: How each of `per_token` is run.
        specs: What each call of an attention layer caches, in order of calls.
        prompt_slots: Slots that `per_prompt` or the model's other inputs fill and
            `per_token` reads.
        step_slots: Those of them that `per_step` reads.
        prompt_inputs: Inputs of the model that hold a number for each token of the prompt, by
            slot, with the argument of attention that they are.
        step_inputs: Slots that `per_step` reads positions from, which each step is given, with the
            slot of the model's input.
        tail: Index in `per_token` from which on no instruction reads other tokens.
        static_length: T where the model was made for one length, else None.
        probabilities: Whether the output has gone through a softmax.
        tried: Names of the layers that were accepted only because of a trial.
    """

    program: Program
    tokens: int
    per_prompt: tuple[Instruction, ...]
    per_token: tuple[Instruction, ...]
    per_step: tuple[Instruction, ...]
    executions: tuple[Execution, ...]
    specs: tuple[CacheSpec, ...]
    prompt_slots: tuple[int, ...]
    step_slots: tuple[int, ...]
    prompt_inputs: dict[int, str]
    step_inputs: dict[int, int]
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
        return Execution.AT_INDEX in self.executions

    def vocabulary(self, slot: int) -> int | None:
        """The number of ids of the embedding that reads an input; None if there is none."""
        return layer_support.vocabulary(self.program, slot)


def make_plan(model: keras.Model, token_input: str | int | None = None) -> Plan:
    """Plans the decoding of a Functional or Sequential model.

    Args:
        model: The model.
        token_input: Name or index of the input that grows token by token; by default the last
            one, leaving out those that are only the segments, spans or positions of attention.

    Raises:
        ValueError: A layer cannot be decoded; the message has its name and the reason.
    """
    program = flatten_graph(model)
    tokens = _token_slot(program, token_input)
    moving = program.depends_on(tokens)
    per_prompt = tuple(x for x in program.instructions if not moving.intersection(x.outputs))
    per_token = tuple(x for x in program.instructions if moving.intersection(x.outputs))
    if program.output not in moving:
        raise ValueError(f"The output of model '{model.name}' does not depend on its tokens.")
    length = program.specs[tokens].shape[1]
    executions, specs, tried = [], [], []
    tail, owners = 0, {}
    for position, instruction in enumerate(per_token):
        execution, cached = _classify(instruction, moving, program, length, owners)
        if execution is None:
            execution, cached = _try_out(instruction, moving, program, length)
            tried.append(instruction.name)
        executions.append(execution)
        if layer_support.is_our_attention(instruction.operation):
            owners[instruction.outputs[0]] = (len(specs), cached[0])
        specs += cached
        tail = position + 1 if cached else tail
    filled = set(program.inputs).union(*(x.outputs for x in per_prompt)) - moving
    per_step = tuple(map(step_instruction, per_token))
    read, read_later = ({i for x in part for i in x.inputs} for part in (per_token, per_step))
    of_prompt = prompt_inputs(program, moving)
    of_step = step_inputs(program, of_prompt, read_later)
    return Plan(
        program,
        tokens,
        per_prompt,
        per_token,
        per_step,
        tuple(executions),
        tuple(specs),
        tuple(sorted(filled & read)),
        tuple(sorted((filled & read_later) - of_step.keys())),
        of_prompt,
        of_step,
        tail,
        length,
        layer_support.ends_in_softmax(per_token[-1]),
        tuple(dict.fromkeys(tried)),
    )


def _token_slot(program: Program, token_input: str | int | None) -> int:
    slots = program.inputs
    names = [program.specs[slot].name for slot in slots]
    if token_input is None:
        # Whatever their order: nobody continues segments.
        possible = [i for i, slot in enumerate(slots) if not is_argument_only(program, slot)]
        token_input = possible[-1] if possible else len(slots) - 1
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


def _classify(
    instruction: Instruction,
    moving: set[int],
    program: Program,
    length: int | None,
    owners: dict[int, tuple[int, CacheSpec]],
) -> tuple[Execution | None, list[CacheSpec]]:
    """How to run an instruction on some tokens, None if a trial must tell, and its caches.

    Args:
        owners: The calls of attention layers before it, by the slots of their outputs.
    """
    layer_support.refuse_known(instruction)
    layer_support.refuse_shape(instruction, length)
    if layer_support.is_our_attention(instruction.operation):
        spec = layer_support.attention_spec(instruction, moving, program, owners)
        return Execution.DIRECT, [spec]
    known = layer_support.acts_per_position(instruction, moving, program)
    return (Execution.DIRECT if known else None), []


def _try_out(
    instruction: Instruction, moving: set[int], program: Program, length: int | None
) -> tuple[Execution, list[CacheSpec]]:
    with probe.without_changes(instruction):
        trial = probe.Trial(instruction, moving, program, length)
        if layer_support.holds_attention(instruction.operation):
            return Execution.DIRECT, trial.with_cache()
        return (Execution.DIRECT if trial.per_position() else Execution.AT_INDEX), []
