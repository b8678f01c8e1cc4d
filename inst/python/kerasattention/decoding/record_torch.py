"""Recording a step as a flat list of torch operations.

A step of a deep model on one token is mostly Python: Keras's layers take longer
than their products. The recorded operations are the same ones on the same
weights, without what surrounds them.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

Step = Callable[..., torch.Tensor]

_aten = torch.ops.aten
VIEWS = {
    _aten.alias.default,
    _aten.expand.default,
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
    module = make_fx(step)(*inputs)
    _fold_constants(module)
    _join_views(module)
    module.graph.eliminate_dead_code(lambda node: node.is_impure() or _writes(node))
    module.recompile()
    return module


def _writes(node: Node) -> bool:
    return node.op == "call_function" and str(node.target).split(".")[-2].endswith("_")


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
        shape = source.meta["val"].shape if "val" in source.meta else _shape(source)
        if len(chain) < 2 or shape is None:
            continue
        result = torch.arange(shape.numel()).reshape(shape)
        for view in reversed(chain):
            result = view.target(result, *view.args[1:], **view.kwargs)
        if not torch.equal(result.reshape(-1), torch.arange(shape.numel())):
            continue
        with module.graph.inserting_before(node):
            joined = module.graph.call_function(_aten.reshape.default, (source, list(result.shape)))
        node.replace_all_uses_with(joined)
        for view in chain:
            module.graph.erase_node(view)


def _is_view(node: Any) -> bool:
    return isinstance(node, Node) and node.op == "call_function" and node.target in VIEWS


def _shape(node: Node) -> torch.Size | None:
    value = node.meta.get("tensor_meta")
    return None if value is None else value.shape
