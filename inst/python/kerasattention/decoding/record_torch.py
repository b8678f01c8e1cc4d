"""Recording a step as a flat list of torch operations.

A step of a deep model on one token is mostly Python: Keras's layers take longer
than their products. The recorded operations are the same ones on the same
weights, without what surrounds them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch.fx import Graph, GraphModule, Node
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map


class Step(Protocol):
    """A recorded step."""

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """The result for other inputs of the same shapes."""

    def is_outdated(self) -> bool:
        """Whether a weight of which it holds a copy has been changed since."""


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
# Those that keep the order of the numbers.
RESHAPES = {
    _aten.reshape.default,
    _aten.squeeze.dim,
    _aten.squeeze.dims,
    _aten.unsqueeze.default,
    _aten.view.default,
    _aten._unsafe_view.default,
}
CONSTANTS = {_aten.arange.start_step, _aten.arange.default, _aten.lift_fresh_copy.default}


def record(step: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> Step:
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
    copied = _multiply_in_int8(module)
    module.graph.eliminate_dead_code(lambda node: node.is_impure() or _writes(node))
    module.recompile()
    return _Recording(module, copied)


class _Copied(NamedTuple):
    """A weight of which a recording holds a copy, and its version when that was made."""

    weight: torch.Tensor
    version: int


class _Recording:
    def __init__(self, module: GraphModule, copied: list[_Copied]) -> None:
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
            self.root.register_buffer(name, x, persistent=False)
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


def _multiply_in_int8(module: GraphModule) -> list[_Copied]:
    """Products of int8 numbers as such, where Keras on a CPU casts them to int32 first.

    The sums are the same whole numbers. The kernel wants a weight with the axis that is
    summed over last: a copy of its own.
    """
    copied = []
    for node in list(module.graph.nodes):
        if node.target not in (_aten.mm.default, _aten.bmm.default):
            continue
        left, right = (_int8_behind(module, x) for x in node.args)
        shape = node.args[1].meta["shape"]
        if left is None or right is None or right.op != "get_attr":
            continue
        weight = getattr(module, right.target)
        if weight.device.type != "cpu" or weight.numel() != shape[-2:].numel():
            continue
        if weight.is_inference():  # has no version, so nobody would see that it changed
            continue
        copied.append(_Copied(weight, weight._version))
        name = f"_int8_{node.name}"
        laid_out = weight.reshape(shape[-2:]).t().contiguous().t()
        module.register_buffer(name, laid_out, persistent=False)
        with module.graph.inserting_before(node):
            rows = module.graph.call_function(_aten.reshape.default, (left, [-1, shape[-2]]))
            product = module.graph.call_function(
                _aten._int_mm.default, (rows, module.graph.get_attr(name))
            )
            whole = module.graph.call_function(
                _aten.reshape.default, (product, list(node.meta["shape"]))
            )
        node.replace_all_uses_with(whole)
        module.graph.erase_node(node)
    return copied


def _int8_behind(module: GraphModule, node: Node) -> Node | None:
    """The int8 numbers that were cast to int32, and then perhaps reshaped, for a product."""
    while node.target in RESHAPES:
        node = node.args[0]
    if node.target is not _aten._to_copy.default or node.kwargs.get("dtype") is not torch.int32:
        return None
    source = node.args[0]
    is_cast = source.target is _aten._to_copy.default
    dtype = (
        source.kwargs.get("dtype")
        if is_cast
        else getattr(getattr(module, str(source.target), None), "dtype", None)
    )
    return source if dtype is torch.int8 else None
