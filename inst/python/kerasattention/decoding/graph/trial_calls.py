"""How a trial calls a layer: as it is, or on JAX as a compiled function."""

from collections.abc import Callable
from typing import Any, Protocol

import keras

from kerasattention.attend.tensors import Tensor
from kerasattention.decoding.cache.context import CacheContext, CrossKV, StepInfo
from kerasattention.decoding.cache.spec import CacheSpec
from kerasattention.decoding.cache.storage import ArrayStorage
from kerasattention.layers.context import attention_context

Inputs = dict[int, Tensor]  # by slot
Call = Callable[[Inputs], list[Tensor]]
# A call on the first tokens or on those that follow: (position, number of tokens, inputs).
CachedCall = Callable[[int, int, Inputs], list[Tensor]]
Specs = tuple[CacheSpec, ...]


class Calls(Protocol):
    """The calls of one layer."""

    def run(self, inputs: Inputs) -> list[Tensor]:
        """The results."""
        ...

    def run_anew(self, inputs: Inputs) -> list[Tensor]:
        """The results of a call that runs the layer's Python code, which may draw numbers."""
        ...

    def with_caches(self, specs: Specs, length: int) -> CachedCall:
        """Calls that follow each other on the same caches of `length` tokens."""
        ...


def calls_of(call: Call, operation: Any) -> Calls:
    """The calls of a layer or operation, given a function that calls it."""
    if keras.backend.backend() == "jax":
        return CompiledCalls(call, operation)
    return EagerCalls(call)


class EagerCalls:
    """Calls the layer as it is."""

    def __init__(self, call: Call) -> None:
        self.call = call

    def run(self, inputs: Inputs) -> list[Tensor]:
        return self.call(inputs)

    def run_anew(self, inputs: Inputs) -> list[Tensor]:
        return self.call(inputs)

    def with_caches(self, specs: Specs, length: int) -> CachedCall:
        storage = ArrayStorage.allocate(specs, 1, length)
        cross_kv: CrossKV = {}

        def run(position: int, size: int, inputs: Inputs) -> list[Tensor]:
            info = StepInfo(position=position, is_prefill=position == 0)
            context = CacheContext(specs, storage, info, cross_kv, length=size, max_length=length)
            with attention_context(context):
                return self.run(inputs)

        return run


class CompiledCalls:
    """Compiles the layer once per length on JAX.

    Without that JAX compiles each of its operations for each length.
    """

    def __init__(self, call: Call, operation: Any) -> None:
        self.call = call
        self.variables = list({id(v): v for v in getattr(operation, "variables", [])}.values())
        self._programs: dict[str, Any] = {}  # by their text
        self._of_inputs: dict[Any, Any] = {}  # by the inputs' shapes

    def run(self, inputs: Inputs) -> list[Tensor]:
        key = tuple((slot, x.shape, x.dtype) for slot, x in inputs.items())
        if key not in self._of_inputs:
            self._of_inputs[key] = self._compile(inputs)
        return self._finish(*self._of_inputs[key](self._weights(), inputs))

    def run_anew(self, inputs: Inputs) -> list[Tensor]:
        return self._finish(*self._compile(inputs)(self._weights(), inputs))

    def with_caches(self, specs: Specs, length: int) -> CachedCall:
        import jax
        import jax.numpy as jnp

        def call(
            size: int, first: bool, weights: Any, kept: Any, position: Tensor, inputs: Inputs
        ) -> Any:
            storage, cross_kv = ArrayStorage(kept[0]), dict(kept[1])
            info = StepInfo(position=position, is_prefill=first)
            context = CacheContext(specs, storage, info, cross_kv, length=size, max_length=length)
            with attention_context(context):
                return self._pure(weights, inputs), (storage.arrays, cross_kv)

        compiled = jax.jit(call, static_argnums=(0, 1))
        kept: Any = (ArrayStorage.allocate(specs, 1, length).arrays, {})

        def run(position: int, size: int, inputs: Inputs) -> list[Tensor]:
            nonlocal kept
            at = jnp.int32(position)
            result, kept = compiled(size, position == 0, self._weights(), kept, at, inputs)
            return self._finish(*result)

        return run

    def _compile(self, inputs: Inputs) -> Any:
        """The program of a call, which runs the layer's Python code."""
        import jax

        lowered = jax.jit(lambda *given: self._pure(*given)).lower(self._weights(), inputs)
        text = lowered.as_text()
        if text not in self._programs:
            self._programs[text] = lowered.compile()
        return self._programs[text]

    def _weights(self) -> list[Tensor]:
        return [variable.value for variable in self.variables]

    def _pure(self, weights: list[Tensor], inputs: Inputs) -> Any:
        """The results, and the new values of the variables that the call changes, by index."""
        state = list(zip(self.variables, weights, strict=True))
        with keras.StatelessScope(state_mapping=state) as scope:
            results = self.call(dict(inputs))
        # Compiled, each call would start with the same value of such a variable.
        if scope.state_mapping.keys() - {id(variable) for variable in self.variables}:
            raise ValueError("it changes a variable that is not among its weights")
        after = [scope.get_current_value(variable) for variable in self.variables]
        changed = {i: x for i, x in enumerate(after) if x is not weights[i]}
        return results, changed

    def _finish(self, results: list[Tensor], changed: dict[int, Tensor]) -> list[Tensor]:
        for index, value in changed.items():
            self.variables[index].assign(value)
        return results
