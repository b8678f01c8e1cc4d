"""A model as a list of instructions, nested models flattened.

A decoder runs the instructions that depend on the tokens once per token, and all others,
such as an encoder, once per prompt. Keras's call of the model would run all of them each time.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar, cast

import keras
from keras import ops, tree

from kerasattention._keras import (
    Functional,
    get_keras_mask,
    graph_of,
    nodes_in_order,
    set_keras_mask,
)
from kerasattention.attend.tensors import Tensor

Arguments = TypeVar("Arguments", tuple[Any, ...], dict[str, Any])


@dataclasses.dataclass(frozen=True)
class Slot:
    """A place for the value of a `KerasTensor` of the model."""

    index: int


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One call of a layer or operation.

    Attributes:
        operation: The layer or operation.
        args: Positional arguments, tensors of the model as slots.
        kwargs: Named arguments likewise.
        outputs: Slots of its results.
        specs: A `KerasTensor` for each of them.
    """

    operation: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[int, ...]
    specs: tuple[Any, ...]

    @property
    def inputs(self) -> list[int]:
        """The slots that it reads."""
        found = tree.flatten((self.args, self.kwargs))
        return [x.index for x in found if isinstance(x, Slot)]

    @property
    def name(self) -> str:
        return self.operation.name

    def fill_in(self, values: dict[int, Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with the slots' values."""
        if len(self.args) == 1 and not self.kwargs and isinstance(self.args[0], Slot):
            return (values[self.args[0].index],), {}

        def value(x: Any) -> Any:
            return values[x.index] if isinstance(x, Slot) else x

        return _mapped(value, self.args), _mapped(value, self.kwargs)


@dataclasses.dataclass(frozen=True)
class Program:
    """The instructions of a model in the order in which they can run.

    Attributes:
        inputs: Slots of the model's inputs, in the model's order.
        output: Slot of its output.
        specs: A `KerasTensor` for each slot.
        masked: Slots whose values may carry a Keras mask that their specs do not show.
    """

    inputs: tuple[int, ...]
    output: int
    instructions: tuple[Instruction, ...]
    specs: dict[int, Any]
    masked: frozenset[int] = frozenset()

    def depends_on(self, slot: int) -> set[int]:
        """The slots whose values change with this one's."""
        found = {slot}
        for instruction in self.instructions:
            if any(index in found for index in instruction.inputs):
                found.update(instruction.outputs)
        return found

    def input_behind(self, slot: int) -> int | None:
        """The slot of the model's input that a slot holds, cast or not; None for what is made."""
        if slot in self.inputs:
            return slot
        for instruction in self.instructions:
            if slot in instruction.outputs and isinstance(instruction.operation, CastTo):
                return self.input_behind(instruction.inputs[0])
        return None


def flatten_graph(model: keras.Model) -> Program:
    """The program of a Functional or Sequential model.

    Raises:
        ValueError: The model is of another kind, is not built or has several outputs.
    """
    graph = as_graph(model)
    if graph is None:
        raise ValueError(
            "`model` must be a Functional or Sequential model that is built: its layers "
            f"are run one by one. Received: {type(model).__name__} '{model.name}'"
            + (", not built" if not model.built else "")
        )
    if len(graph.outputs) != 1:
        raise ValueError(
            f"`model` must have one output, the logits. Received: {len(graph.outputs)} outputs"
        )
    flattener = _Flattener()
    inputs = [flattener.new_slot(x) for x in graph.inputs]
    outputs = flattener.flatten(graph, inputs)
    return Program(
        tuple(x.index for x in inputs),
        outputs[0].index,
        tuple(flattener.made),
        flattener.specs,
        frozenset(flattener.masked),
    )


def as_graph(operation: Any) -> Any:
    """The graph of a model whose call only runs its graph; else None."""
    if isinstance(operation, keras.Sequential):
        plain = type(operation).call is keras.Sequential.call
        return graph_of(operation) if plain else None
    if isinstance(operation, Functional) and type(operation).call is Functional.call:
        return operation
    return None


class _Flattener:
    """Collects the instructions of a model and of the models in it."""

    def __init__(self) -> None:
        self.made: list[Instruction] = []
        self.specs: dict[int, Any] = {}
        self.masked: set[int] = set()

    def new_slot(self, spec: Any) -> Slot:
        slot = Slot(len(self.specs))
        self.specs[slot.index] = spec
        return slot

    def flatten(self, graph: Any, inputs: list[Slot]) -> list[Slot]:
        slots = {
            id(x): self._converted(slot, x) for x, slot in zip(graph.inputs, inputs, strict=True)
        }

        def as_slot(x: Any) -> Any:
            return slots[id(x)] if isinstance(x, keras.KerasTensor) else x

        for node in nodes_in_order(graph):
            args = _mapped(as_slot, node.arguments.args)
            kwargs = _mapped(as_slot, node.arguments.kwargs)
            inner = as_graph(node.operation)
            if inner is not None and len(args) == 1 and not _given(kwargs):
                made = self.flatten(inner, self._with_masks(tree.flatten(args[0]), kwargs))
            else:
                made = self._add(node.operation, args, kwargs, node.outputs)
            slots |= {id(x): slot for x, slot in zip(node.outputs, made, strict=True)}
        return [slots[id(x)] for x in graph.outputs]

    def _add(self, operation: Any, args: Any, kwargs: dict[str, Any], outputs: Any) -> list[Slot]:
        """Adds an instruction; its results may be masked if anything that it reads is.

        A `ReversibleEmbedding` attaches its mask when it is called, and no spec shows it.
        """
        made = [self.new_slot(x) for x in outputs]
        indices = tuple(slot.index for slot in made)
        instruction = Instruction(operation, tuple(args), dict(kwargs), indices, tuple(outputs))
        self.made.append(instruction)
        is_embedding = isinstance(operation, keras.layers.Embedding) and operation.mask_zero
        if is_embedding and any(get_keras_mask(x) is None for x in outputs):
            self.masked.update(indices)
        if self.masked.intersection(instruction.inputs):
            self.masked.update(indices)
        return made

    def _with_masks(self, inputs: list[Slot], kwargs: dict[str, Any]) -> list[Slot]:
        """The inputs of a nested model with the masks that it is called with."""
        masks = tree.flatten(kwargs.get("mask"))
        if not any(isinstance(mask, Slot) for mask in masks):
            return inputs
        return [
            self._masked(x, mask) if isinstance(mask, Slot) else x
            for x, mask in zip(inputs, masks, strict=True)
        ]

    def _masked(self, slot: Slot, mask: Slot) -> Slot:
        made = self._add(WithMask(), (slot, mask), {}, (self.specs[slot.index],))[0]
        self.masked.add(made.index)
        return made

    def _converted(self, slot: Slot, wanted: Any) -> Slot:
        """The slot cast to the dtype that the model was made with."""
        if self.specs[slot.index].dtype == wanted.dtype:
            return slot
        return self._add(CastTo(wanted.dtype), (slot,), {}, (wanted,))[0]


class CastTo:
    """The cast of a model's input, which is no layer."""

    def __init__(self, dtype: str) -> None:
        self.name, self.dtype = "cast", dtype

    def __call__(self, x: Tensor) -> Tensor:
        return ops.cast(x, self.dtype)


class WithMask:
    """A nested model's input with the Keras mask that the model is called with."""

    name = "with_mask"

    def __call__(self, x: Tensor, mask: Tensor) -> Tensor:
        x = ops.copy(x)  # the mask is not for others that read it
        set_keras_mask(x, mask)
        return x


def _mapped(function: Callable[[Any], Any], arguments: Arguments) -> Arguments:
    """Arguments of the same structure, with the function's value for each leaf."""
    return cast("Arguments", tree.map_structure(function, arguments))


def _given(kwargs: dict[str, Any]) -> bool:
    """Whether a nested model is called with more than masks."""
    return any(value is not None for name, value in kwargs.items() if name != "mask")
