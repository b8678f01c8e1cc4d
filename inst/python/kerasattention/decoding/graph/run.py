"""Runs the instructions of a plan: once per prompt, per token, or as one full pass."""

from typing import Any

from keras import ops, tree

from kerasattention._keras import get_keras_mask, set_keras_mask
from kerasattention.attend.tensors import Tensor
from kerasattention.decoding.cache.context import CacheContext
from kerasattention.decoding.graph.plan import Execution, Plan
from kerasattention.decoding.graph.program import Instruction
from kerasattention.layers.context import attention_context

Values = dict[int, Tensor]
# Values that prefill computes once for all steps: by slot, with the Keras mask of each.
PromptValues = dict[int, tuple[Tensor, Tensor | None]]


def run_full(plan: Plan, inputs: Values) -> Tensor:
    """The model's output for whole sequences, without caches: (B, T, ...)."""
    values = dict(inputs)
    for instruction in plan.program.instructions:
        _run(instruction, values)
    return values[plan.program.output]


def run_per_prompt(plan: Plan, inputs: Values) -> Values:
    """The values, by slot, that the instructions per token read and that no token changes."""
    values = dict(inputs)
    for instruction in plan.per_prompt:
        _run(instruction, values)
    return {slot: values[slot] for slot in plan.prompt_slots}


def run_per_token(
    plan: Plan, context: CacheContext, tokens: Tensor, prompt_values: Values
) -> Tensor:
    """The output for the last real one of the tokens (B, t): (B, ...)."""
    info = context.info
    values = {plan.tokens: tokens, **prompt_values}
    instructions = plan.per_token if info.is_prefill else plan.per_step
    last_reader = {slot: i for i, x in enumerate(instructions) for slot in x.inputs}
    length, position = tokens.shape[1], info.position
    full_length = plan.static_length or context.max_length
    with attention_context(context):
        for number, instruction in enumerate(instructions):
            if number == plan.tail and length > 1:
                at = info.last(length)
                _keep_one_token(values, prompt_values, at)
                position, length = position + at, 1
            if plan.executions[number] is Execution.DIRECT:
                _run(instruction, values)
            else:
                _run_at_index(
                    instruction, values, prompt_values, position, info.padding, full_length
                )
            for slot in instruction.inputs:  # frees the activations of a long prompt
                if last_reader[slot] == number and slot != plan.program.output:
                    values.pop(slot, None)
        output = values[plan.program.output]  # (B, t, ...)
        if output.shape[1] > 1:
            return take_token(output, info.last(length))[:, 0]
    return output[:, 0]


def of_steps(plan: Plan, values: Values) -> Values:
    """Those of the values that the tokens after a prompt read."""
    return {slot: values[slot] for slot in plan.step_slots}


def with_mask_of_each(values: Values) -> PromptValues:
    """Values with their Keras masks, which a compiled function would lose."""
    return {slot: (x, get_keras_mask(x)) for slot, x in values.items()}


def attach_masks(prompt_values: PromptValues) -> Values:
    """Values that carry their Keras masks again."""
    for x, mask in prompt_values.values():
        if mask is not None:
            set_keras_mask(x, mask)
    return {slot: x for slot, (x, _) in prompt_values.items()}


def _run(instruction: Instruction, values: Values) -> None:
    args, kwargs = instruction.fill_in(values)
    result = tree.flatten(instruction.operation(*args, **kwargs))
    values |= dict(zip(instruction.outputs, result, strict=True))


def _run_at_index(
    instruction: Instruction,
    values: Values,
    prompt_values: Values,
    position: Any,
    padding: Tensor | None,
    full_length: int,
) -> None:
    """Puts the tokens at their indices of a full length, and takes the results from there."""
    moved = {slot: values[slot] for slot in instruction.inputs if slot not in prompt_values}
    length = next(iter(moved.values())).shape[1]
    first = position if padding is None else position - padding[:, None]  # () or (B, 1)
    source = ops.arange(full_length, dtype="int32") - first  # (T) or (B, T)
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
        return ops.take(x, index, axis=1)  # (B, t, ...)
    index = ops.reshape(index, (*ops.shape(index), *[1] * (len(x.shape) - 2)))
    return ops.take_along_axis(x, index, axis=1)  # (B, t, ...)


def take_token(x: Tensor, at: Any) -> Tensor:
    """x (B, T, ...) at one index: (B, 1, ...)."""
    if isinstance(at, int):
        return x[:, at : at + 1]
    return ops.take(x, ops.reshape(at, (1,)), axis=1)


def _keep_one_token(values: Values, prompt_values: Values, at: Any) -> None:
    for slot in values:
        if slot not in prompt_values:
            values[slot] = take_token(values[slot], at)


def as_logits(plan: Plan, output: Tensor) -> Tensor:
    """The model's output, or its logarithm where the model ends in a softmax."""
    return ops.log(output) if plan.probabilities else output
