"""Recording a step as a flat list of torch operations.

A step of a deep model on one token is mostly Python: Keras's layers take longer
than their products. The recorded operations are the same ones on the same
weights, without what surrounds them.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

Step = Callable[..., torch.Tensor]

_aten = torch.ops.aten
VIEWS = {
    _aten.alias.default,
    _aten.detach.default,
    _aten.expand.default,
    _aten.lift_fresh.default,
    _aten.permute.default,
    _aten.squeeze.dim,
    _aten.squeeze.dims,
    _aten.t.default,
    _aten.transpose.int,
    _aten.unsqueeze.default,
    _aten.view.default,
    _aten._unsafe_view.default,
}
CONSTANTS = {_aten.arange.start_step, _aten.arange.default, _aten.lift_fresh_copy.default}


def record(step: Step, *inputs: torch.Tensor) -> Step:
    """The operations of one call, to be run on other inputs of the same shapes.

    Raises:
        RuntimeError: The step looks into its tensors to decide what to do.
    """
    recorder = _Recorder(inputs)
    with recorder:
        result = step(*inputs)
    module = recorder.module(result)
    _fold_constants(module)
    _join_views(module)
    module.graph.eliminate_dead_code(lambda node: node.is_impure() or _writes(node))
    module.recompile()
    return module


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
        result = func(*args, **kwargs)
        node = self.graph.call_function(func, *tree_map(self._get, (args, kwargs)))
        if isinstance(result, torch.Tensor):
            self._set(result, node)
        elif isinstance(result, (tuple, list)):
            for index, part in enumerate(result):
                if isinstance(part, torch.Tensor):
                    self._set(part, self.graph.call_function(_part, (node, index)))
        return result

    def module(self, result: torch.Tensor) -> GraphModule:
        """The graph that ends in a result."""
        self.graph.output(self._get(result))
        return GraphModule(self.root, self.graph)

    def _set(self, x: torch.Tensor, node: Node) -> None:
        node.meta["shape"] = x.shape
        self._nodes[id(x)] = (node, x)

    def _get(self, x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        if id(x) not in self._nodes:  # a weight, a cache or a number made elsewhere
            name = f"_constant_{len(self._nodes)}"
            self.root.register_buffer(name, x.detach(), persistent=False)
            self._set(x, self.graph.get_attr(name))
        return self._nodes[id(x)][0]


def _part(parts: Any, index: int) -> torch.Tensor:
    return parts[index]


def _writes(node: Node) -> bool:
    """Whether it changes a tensor, a cache: its result is not always used."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _fold_constants(module: GraphModule) -> None:
    """Computes once what does not depend on inputs: views of weights and ranges."""
    known: dict[Node, Any] = {}
    for node in list(module.graph.nodes):
        if node.op == "get_attr":
            known[node] = getattr(module, node.target)
        elif (
            node.op == "call_function"
            and node.target in VIEWS | CONSTANTS
            and all(x in known for x in node.all_input_nodes)
        ):
            args = torch.fx.map_arg(node.args, known.__getitem__)
            kwargs = torch.fx.map_arg(node.kwargs, known.__getitem__)
            known[node] = node.target(*args, **kwargs)
            name = f"_folded_{node.name}"
            module.register_buffer(name, known[node].detach(), persistent=False)
            with module.graph.inserting_before(node):
                constant = module.graph.get_attr(name)
            constant.meta["shape"] = known[node].shape
            node.replace_all_uses_with(constant)
            module.graph.erase_node(node)
            known[constant] = known.pop(node)


def _join_views(module: GraphModule) -> None:
    """One view in place of a chain of them that keeps the order of the numbers."""
    for node in list(module.graph.nodes):
        if not _is_view(node) or any(_is_view(user) for user in node.users):
            continue
        chain = [node]
        while _is_view(chain[-1].args[0]) and len(chain[-1].args[0].users) == 1:
            chain.append(chain[-1].args[0])
        source = chain[-1].args[0]
        shape = source.meta["shape"]
        if len(chain) < 2:
            continue
        result = torch.arange(shape.numel()).reshape(shape)
        for view in reversed(chain):
            result = view.target(result, *view.args[1:], **view.kwargs)
        if not torch.equal(result.reshape(-1), torch.arange(shape.numel())):
            continue
        with module.graph.inserting_before(node):
            joined = module.graph.call_function(_aten.reshape.default, (source, list(result.shape)))
        joined.meta["shape"] = result.shape
        node.replace_all_uses_with(joined)
        for view in chain:
            module.graph.erase_node(view)


def _is_view(node: Any) -> bool:
    return isinstance(node, Node) and node.op == "call_function" and node.target in VIEWS
