"""A step as a flat list of torch operations.

Most of the time of a deep model's step on one token is Python's: Keras's layers take longer
than their products. The traced operations are the same ones on the same weights.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from kerasattention.decoding.backends.optimize_torch import optimize, take_part

_aten = torch.ops.aten


def trace(step: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> GraphModule:
    """The operations of one call, to be run on other inputs of the same shapes.

    Raises:
        RuntimeError: The step reads values of its tensors to decide what to do.
    """
    tracer = _Tracer(inputs)
    with tracer:
        result = step(*inputs)
    module = tracer.module(result)
    optimize(module)
    return module


class _Tracer(TorchDispatchMode):
    """Adds a node to a graph for each operation that runs.

    torch's own tracer does so too, but keeps the Python stack and an abstract
    tensor for each operation, and takes ten times as long.
    """

    def __init__(self, inputs: tuple[torch.Tensor, ...]) -> None:
        super().__init__()
        self.graph, self.root = Graph(), torch.nn.Module()
        # Tensors are known by identity, so each has to live as long as the tracer.
        self._nodes: dict[int, tuple[Node, torch.Tensor]] = {}
        for index, x in enumerate(inputs):
            self._set(x, self.graph.placeholder(f"input_{index}"))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is _aten._local_scalar_dense.default:
            raise RuntimeError("The step reads values of its tensors.")
        with self:  # an operation made of others is traced as those
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
