"""Fewer operations that do the same, for a recorded step of torch.

A step on one token is many small operations; each takes some microseconds, however little it
computes. Layers make the same tables of positions, the same masks, and quantise the same
features for each of their projections.
"""

from typing import Any

import torch
from torch.fx import GraphModule, Node

_aten = torch.ops.aten

VIEWS = {
    _aten.alias.default,
    _aten.detach.default,
    _aten.detach_.default,
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
# What makes numbers of nothing, and so the same ones in each step.
LITERALS = {
    _aten.arange.default,
    _aten.arange.start_step,
    _aten.lift_fresh.default,
    _aten.lift_fresh_copy.default,
}
# Said to write, but the numbers stay.
_NO_WRITES = {_aten.detach_.default}
# Literals of more numbers are not compared.
_COMPARED = 4096


def simplify(module: GraphModule) -> None:
    """Folds what is constant, computes once what is computed twice, and joins views."""
    for node in _written(module):
        if node.target is _aten.lift_fresh.default:  # a literal: each step starts from its numbers
            node.target = _aten.clone.default
    written = _written(module)
    _fold_constants(module, written)
    _merge_equal(module, written)
    _join_views(module)


def insert(module: GraphModule, shape: Any, function: Any, *args: Any) -> Node:
    """A new operation where the graph inserts, whose result has this shape."""
    node = module.graph.call_function(function, args)
    node.meta["shape"] = torch.Size(shape)
    return node


def take_part(parts: Any, index: int) -> torch.Tensor:
    """One of several results of an operation."""
    return parts[index]


def writes(node: Node) -> bool:
    """Whether it changes a tensor, a cache: its result is not always used."""
    is_operation = isinstance(node.target, torch._ops.OpOverload)
    return is_operation and node.target._schema.is_mutable and node.target not in _NO_WRITES


def _written(module: GraphModule) -> set[Node]:
    """What is changed in place by some operation, and the views through which it is."""
    found, memories = set(), set()
    for source in (x for node in module.graph.nodes for x in _targets(node)):
        found.add(source)
        while _shares_memory(source):
            source = source.args[0]
            found.add(source)
        if source.op == "get_attr":
            memories.add(_memory(module, source))
    for node in module.graph.nodes:  # other tensors in the same memory
        if node.op == "get_attr" and _memory(module, node) in memories:
            found.add(node)
    return found


def _targets(node: Node) -> list[Node]:
    """The arguments that an operation changes: the first, as a rule, or `out`."""
    if not writes(node):
        return []
    arguments = enumerate(node.target._schema.arguments)
    given = [
        node.args[at] if at < len(node.args) else node.kwargs.get(x.name)
        for at, x in arguments
        if x.alias_info is not None and x.alias_info.is_write
    ]
    return [x for x in given if isinstance(x, Node)]


def _shares_memory(node: Node) -> bool:
    """Whether it is a view of its first argument, or that argument after a change."""
    if node.target in (take_part, _aten._unsafe_view.default):
        return True
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    return any(x.alias_info is not None for x in node.target._schema.returns)


def _memory(module: GraphModule, node: Node) -> int:
    return getattr(module, node.target).untyped_storage().data_ptr()


def _is_pure(node: Node) -> bool:
    if node.target is take_part:
        return True
    if not isinstance(node.target, torch._ops.OpOverload) or writes(node):
        return False
    return torch.Tag.nondeterministic_seeded not in node.target.tags


def _fold_constants(module: GraphModule, written: set[Node]) -> None:
    """Computes once views of weights, and what is made of literal numbers alone."""
    known: dict[Node, Any] = {}
    for node in list(module.graph.nodes):
        if node.op == "get_attr":
            known[node] = getattr(module, node.target)
            continue
        inputs = node.all_input_nodes
        if node.op != "call_function" or not all(x in known for x in inputs):
            continue
        made_of_literals = all(x.meta.get("literal") for x in inputs)
        literal = node.target in LITERALS or (bool(inputs) and made_of_literals and _is_pure(node))
        if not (literal or node.target in VIEWS) or (literal and node in written):
            continue
        args = torch.fx.map_arg(node.args, known.__getitem__)
        kwargs = torch.fx.map_arg(node.kwargs, known.__getitem__)
        value = node.target(*args, **kwargs)
        if not isinstance(value, torch.Tensor):
            continue
        name = f"_folded_{node.name}"
        module.register_buffer(name, value.detach(), persistent=False)
        with module.graph.inserting_before(node):
            constant = module.graph.get_attr(name)
        constant.meta |= {"shape": value.shape, "literal": literal}
        if node in written:
            written.add(constant)
        node.replace_all_uses_with(constant)
        module.graph.erase_node(node)
        known[constant] = value


def _merge_equal(module: GraphModule, written: set[Node]) -> None:
    """Keeps the first of several operations that give the same.

    Those that read what is changed in place are the same only until the next change. torch.fx's
    own pass for this knows neither such changes nor equal literals.
    """
    always: dict[Any, Node] = {}
    for_now: dict[Any, Node] = {}
    changing = set(written)
    for node in list(module.graph.nodes):
        if writes(node):
            for_now.clear()
        if any(x in changing for x in node.all_input_nodes):
            changing.add(node)
        key = _key(module, node)
        if key is None or node in written:
            continue
        first = (for_now if node in changing else always).setdefault(key, node)
        if first is not node:
            node.replace_all_uses_with(first)
            module.graph.erase_node(node)


def _key(module: GraphModule, node: Node) -> Any:
    """What two operations that give the same have in common; None where that is not known."""
    if node.op == "get_attr":
        value = getattr(module, node.target)
        if node.meta.get("literal") and value.numel() <= _COMPARED and value.device.type == "cpu":
            return value.dtype, value.shape, value.contiguous().numpy().tobytes()
        return node.target
    if node.op != "call_function" or not _is_pure(node):
        return None
    return node.target, _frozen(node.args), _frozen(node.kwargs)


def _frozen(x: Any) -> Any:
    """Arguments as a key; 1, 1.0 and True are different ones."""
    if isinstance(x, (tuple, list)):
        return tuple(_frozen(y) for y in x)
    if isinstance(x, dict):
        return tuple((name, _frozen(x[name])) for name in sorted(x))
    return x if isinstance(x, Node) else (type(x), x)


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
            shape = list(result.shape)
            joined = insert(module, shape, _aten.reshape.default, source, shape)
        node.replace_all_uses_with(joined)
        for view in chain:
            module.graph.erase_node(view)


def _is_view(node: Any) -> bool:
    return isinstance(node, Node) and node.op == "call_function" and node.target in VIEWS
