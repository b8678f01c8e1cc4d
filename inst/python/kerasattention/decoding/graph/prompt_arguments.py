"""Arguments of attention with a number for each token: segments, spans and positions.

They come from inputs of the model. At prefill they are read as they are. The tokens after the
prompt are in no span, and in the last segment of their row; their positions are given with them.
"""

import dataclasses
from typing import Any

import numpy as np

from kerasattention.decoding.graph.layer_support import (
    PROMPT_ARGUMENTS,
    bound_arguments,
    is_our_attention,
    refusal,
)
from kerasattention.decoding.graph.program import CastTo, Instruction, Program, Slot
from kerasattention.decoding.prompts import pad_right

POSITIONS = "positions"  # the argument that each step is given


def prompt_inputs(program: Program, moving: set[int]) -> dict[int, str]:
    """The model's inputs that such an argument is given, by slot, with the argument's name.

    Args:
        program: The model's.
        moving: Slots that depend on the tokens; an encoder's own segments are no prompt's.

    Raises:
        ValueError: An input is also read as something else.
    """
    found: dict[int, str] = {}
    readers: dict[int, list[tuple[Instruction, str | None]]] = {}
    for instruction in program.instructions:
        if isinstance(instruction.operation, CastTo):
            continue
        arguments = _slots_of(instruction) if moving.intersection(instruction.outputs) else {}
        for slot in instruction.inputs:
            source = program.input_behind(slot)
            if source is not None:
                names = [name for name, index in arguments.items() if index == slot]
                if names:
                    found[source] = names[0]
                readers.setdefault(source, []).extend((instruction, x) for x in names or [None])
    for source, argument in found.items():
        for instruction, name in readers[source]:
            if name != argument:
                raise refusal(
                    instruction.name,
                    f"it reads the input '{program.specs[source].name}', which is the "
                    f"`{argument}` of an attention layer; make that an input of the model "
                    "that nothing else reads",
                )
    return found


def is_argument_only(program: Program, source: int) -> bool:
    """Whether only attention layers read an input of the model, as one of these arguments."""
    found = False
    for instruction in program.instructions:
        if isinstance(instruction.operation, CastTo):
            continue
        read = {slot for slot in instruction.inputs if program.input_behind(slot) == source}
        if not read.issubset(_slots_of(instruction).values()):
            return False
        found = found or bool(read)
    return found


def step_inputs(program: Program, inputs: dict[int, str], read: set[int]) -> dict[int, int]:
    """The slots that steps read positions from, each with that of the model's input.

    Args:
        program: The model's.
        inputs: Of `prompt_inputs()`.
        read: Slots that the instructions of a step read.
    """
    sources = {slot: program.input_behind(slot) for slot in read}
    return {
        slot: source
        for slot, source in sources.items()
        if source is not None and inputs.get(source) == POSITIONS
    }


def step_instruction(instruction: Instruction) -> Instruction:
    """The instruction without arguments of a prompt only, for the tokens after it."""
    slots = {slot for name, slot in _slots_of(instruction).items() if name != POSITIONS}
    if not slots:
        return instruction

    def kept(x: Any) -> Any:
        return None if isinstance(x, Slot) and x.index in slots else x

    return dataclasses.replace(
        instruction,
        args=tuple(kept(x) for x in instruction.args),
        kwargs={name: kept(x) for name, x in instruction.kwargs.items()},
    )


def _slots_of(instruction: Instruction) -> dict[str, int]:
    """The slots of such arguments of a call, by the arguments' names."""
    if not is_our_attention(instruction.operation):
        return {}
    given = bound_arguments(instruction)
    return {
        name: given[name].index for name in PROMPT_ARGUMENTS if isinstance(given.get(name), Slot)
    }


def check_numbers(
    name: str,
    argument: str,
    given: np.ndarray,
    shape: tuple[int, ...],
    dtype: str,
    tokens: str = "prompts",
) -> None:
    """Refuses an input that is not a number for each token of the prompts, or of a step.

    Args:
        name: Of the model's input.
        argument: Of the attention layer.
        given: What the input was given.
        shape: (B, t), or (B, t, axes) for positions of several axes.
        dtype: Of the model's input.
        tokens: What they are.
    """
    kind = f"The input '{name}' is the `{argument}` of the {tokens}"
    if given.shape != shape:
        numbers = "a number" if len(shape) == 2 else f"{shape[2]} numbers"
        raise ValueError(
            f"{kind}: {numbers} for each token, of shape {shape}. Rows of different lengths are "
            f"padded on the left with 0. Received: shape {given.shape}"
        )
    is_number = given.dtype.kind in "iuf" and bool(np.isfinite(given).all())
    is_whole = is_number and bool(np.equal(given, np.floor(given)).all())
    if not is_number or ("int" in dtype and not is_whole):
        rule = "whole numbers" if "int" in dtype else "finite numbers"
        raise ValueError(f"{kind}: {rule}. Received: {given.dtype} {given.reshape(-1)[:3]}")
    if argument == "segment_ids" and not given[:, -1].all():
        rows = np.flatnonzero(given[:, -1] == 0)
        raise ValueError(
            f"{kind}: new tokens belong to the segment of a row's last token, which must not be 0, "
            f"padding. Received: 0 in row {rows[0] + 1} of {shape[0]}"
        )


def extended(argument: str, given: np.ndarray, length: int) -> np.ndarray:
    """(B, length, ...): what the tokens after the prompt would be given in a full pass."""
    if argument == "bidirectional":
        return pad_right(given, length)
    # No token sees one behind all others.
    later = given[:, -1:] if argument == "segment_ids" else given.max(axis=1, keepdims=True) + 1
    missing = max(length - given.shape[1], 0)
    return np.concatenate([given, np.repeat(later, missing, axis=1)], axis=1)
