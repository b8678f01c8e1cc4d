"""Products of few rows with a weight, in blocks of its columns.

With few rows a product takes as long as its weight takes to be read. On a CPU torch's
library reads it well below the memory's rate; as a batch of products, one for each block of
columns, it comes closer.
"""

import torch
from torch.fx import GraphModule, Node

from kerasattention.decoding.backends.simplify_torch import insert

_aten = torch.ops.aten

# With more rows than these, arithmetic and not memory sets the time.
FEW_ROWS = 16
# Smaller weights are in a core's cache, and waking the other threads takes longer.
LEAST_NUMBERS = 2**18
# Narrower blocks make for short runs of memory.
LEAST_COLUMNS = 64


def multiply_in_columns(module: GraphModule) -> None:
    """Puts batches of products in place of a recording's products with constant weights."""
    for node in list(module.graph.nodes):
        weight = _weight_of(module, node)
        if weight is None:
            continue
        left, rows = node.args[0], node.meta["shape"][-2]
        blocks = count_blocks(weight.shape[1], torch.get_num_threads())
        if blocks == 1 or rows > FEW_ROWS or weight.numel() < LEAST_NUMBERS:
            continue
        name = f"_columns_{node.name}"
        module.register_buffer(name, in_columns(weight, blocks), persistent=False)
        width, depth = weight.shape[1] // blocks, weight.shape[0]
        with module.graph.inserting_before(node):
            x = insert(module, (1, rows, depth), _aten.reshape.default, left, [1, rows, depth])
            x = insert(module, (blocks, rows, depth), _aten.expand.default, x, [blocks, -1, -1])
            x = insert(
                module, (blocks, rows, width), _aten.bmm.default, x, module.graph.get_attr(name)
            )
            if rows > 1:
                x = insert(module, (rows, blocks, width), _aten.transpose.int, x, 0, 1)
            shape = node.meta["shape"]
            x = insert(module, shape, _aten.reshape.default, x, list(shape))
        node.replace_all_uses_with(x)
        module.graph.erase_node(node)


def count_blocks(columns: int, threads: int) -> int:
    """How many blocks of equal width: up to two for each thread."""
    most = min(2 * threads, columns // LEAST_COLUMNS)
    return next((x for x in range(most, 0, -1) if columns % x == 0), 1)


def in_columns(weight: torch.Tensor, blocks: int) -> torch.Tensor:
    """(I, O) as (blocks, I, O / blocks), the same memory: a weight changed later counts."""
    return weight.unflatten(1, (blocks, -1)).permute(1, 0, 2)


def _weight_of(module: GraphModule, node: Node) -> torch.Tensor | None:
    """The constant (I, O) that is the right side of a product, if that is all there is."""
    if node.target not in (_aten.mm.default, _aten.bmm.default):
        return None
    right = node.args[1]
    if right.op != "get_attr":
        return None
    weight = getattr(module, right.target)
    if weight.ndim == 3 and weight.shape[0] == 1:
        weight = weight[0]
    if weight.ndim != 2 or weight.device.type != "cpu" or weight.dtype != torch.float32:
        return None
    # MKL takes a matrix whose rows or whose columns lie in one piece.
    return weight if 1 in weight.stride() else None
