"""Products of int8 numbers, as such: Keras on a CPU casts them to int32 first."""

from typing import NamedTuple

import torch
from torch.fx import GraphModule, Node

from kerasattention.decoding.backends.simplify_torch import RESHAPES, insert

_aten = torch.ops.aten


class Copied(NamedTuple):
    """A weight of which a recording holds a copy, and its version when that was made."""

    weight: torch.Tensor
    version: int


def multiply_in_int8(module: GraphModule) -> list[Copied]:
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
        copied.append(Copied(weight, weight._version))
        name = f"_int8_{node.name}"
        laid_out = weight.reshape(shape[-2:]).t().contiguous().t()
        module.register_buffer(name, laid_out, persistent=False)
        with module.graph.inserting_before(node):
            length = left.meta["shape"].numel() // shape[-2]
            x = insert(
                module, (length, shape[-2]), _aten.reshape.default, left, [length, shape[-2]]
            )
            x = insert(
                module, (length, shape[-1]), _aten._int_mm.default, x, module.graph.get_attr(name)
            )
            whole = node.meta["shape"]
            x = insert(module, whole, _aten.reshape.default, x, list(whole))
        node.replace_all_uses_with(x)
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
