"""Recording a step as a flat list of torch operations.

A step of a deep model on one token is mostly Python: Keras's layers take longer
than their products. The recorded operations are the same ones on the same
weights, without what surrounds them.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch.fx import Graph, GraphModule, Node
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from kerasattention.decoding.backends.columns_torch import multiply_in_columns
from kerasattention.decoding.backends.int8_torch import Copied, multiply_in_int8
from kerasattention.decoding.backends.simplify_torch import simplify, take_part, writes

_aten = torch.ops.aten


class Step(Protocol):
    """A recorded step."""

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """The result for other inputs of the same shapes."""

    def is_outdated(self) -> bool:
        """Whether a weight of which it holds a copy has been changed since."""


def record(step: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> Step:
    """The operations of one call, to be run on other inputs of the same shapes.

    Raises:
        RuntimeError: The step looks into its tensors to decide what to do.
    """
    recorder = _Recorder(inputs)
    with recorder:
        result = step(*inputs)
    module = recorder.module(result)
    simplify(module)
    copied = multiply_in_int8(module)
    multiply_in_columns(module)
    simplify(module)  # products of the same features have some of it in common
    module.graph.eliminate_dead_code(lambda node: node.is_impure() or writes(node))
    module.recompile()
    return _Recording(module, copied)


class _Recording:
    def __init__(self, module: GraphModule, copied: list[Copied]) -> None:
        self._module, self._copied = module, copied

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self._module(*inputs)

    def is_outdated(self) -> bool:
        return any(weight._version != version for weight, version in self._copied)


class _Recorder(TorchDispatchMode):
    """Writes down each operation as a node of a graph while it runs.

    torch's own tracer does so too, but keeps the Python stack and an abstract
    tensor for each operation, and takes ten times as long.
    """

    def __init__(self, inputs: tuple[torch.Tensor, ...]) -> None:
        super().__init__()
        self.graph, self.root = Graph(), torch.nn.Module()
        # Tensors are known by identity, so each has to live as long as the recorder.
        self._nodes: dict[int, tuple[Node, torch.Tensor]] = {}
        for index, x in enumerate(inputs):
            self._set(x, self.graph.placeholder(f"input_{index}"))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is _aten._local_scalar_dense.default:
            raise RuntimeError("The step looks into its tensors.")
        with self:  # an operation made of others is written down as those
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        if func is _aten.lift_fresh.default:  # a literal, that the step may change later
            self._get(args[0], args[0].clone())
        result = func(*args, **kwargs)
        node = self.graph.call_function(func, *tree_map(self._get, (args, kwargs)))
        if isinstance(result, torch.Tensor):
            self._set(result, node)
        elif isinstance(result, (tuple, list)):
            for index, part in enumerate(result):
                if isinstance(part, torch.Tensor):
                    self._set(part, self.graph.call_function(take_part, (node, index)))
        return result

    def module(self, result: torch.Tensor) -> GraphModule:
        """The graph that ends in a result."""
        self.graph.output(self._get(result))
        return GraphModule(self.root, self.graph)

    def _set(self, x: torch.Tensor, node: Node) -> None:
        node.meta["shape"] = x.shape
        self._nodes[id(x)] = (node, x)

    def _get(self, x: Any, value: torch.Tensor | None = None) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        if id(x) not in self._nodes:  # a weight, a cache or a number made elsewhere
            name = f"_constant_{len(self._nodes)}"
            self.root.register_buffer(name, x if value is None else value, persistent=False)
            self._set(x, self.graph.get_attr(name))
        return self._nodes[id(x)][0]
