"""Products on a CPU with torch: in blocks of columns for few rows, and of int8 numbers.

**Columns.** With few rows a product takes as long as its weight takes to be read, and torch's
library reads it well below the memory's rate. As a batch of products, one for each block of
columns, several threads come closer: steps of a model of 6 layers, D = 576, B = 4, take 1.4
times as long without (2 threads, AVX2). With one thread they take 0.9 of the time without, so
that there are no blocks then.

**int8.** Keras on a CPU casts both sides to int32, for which torch has no library, and the cast
of a weight takes four times its memory. `torch._int_mm` gives the same whole numbers. It is used
only on processors with instructions for it. Without them (AVX2) a product with a (576, 1536)
weight takes 2.0 times as long as the cast and the product of int32 for 1 row, 4.2 for 32 rows.
"""

import functools
from typing import NamedTuple

import torch
from keras import ops

from kerasattention.decoding.backends.products import Linear, Products

# With more rows than these, arithmetic and not memory sets the time.
FEW_ROWS = 16
# Smaller weights are in a core's cache, and waking the other threads takes longer.
LEAST_NUMBERS = 2**18
# Narrower blocks make for short runs of memory.
LEAST_COLUMNS = 64


class Copied(NamedTuple):
    """A weight of which an override holds a copy, and its version when that was made."""

    weight: torch.Tensor
    version: int


class TorchProducts(NamedTuple):
    """Overrides of layers' calls, and the weights that they copied."""

    overrides: Products
    copies: list[Copied]

    def are_outdated(self) -> bool:
        """Whether a weight has been changed since it was copied."""
        return any(weight._version != version for weight, version in self.copies)


@torch.inference_mode()
def torch_products(layers: list[Linear]) -> TorchProducts:
    """Overrides for the layers whose product is faster in another form."""
    products = TorchProducts({}, [])
    for linear in layers:
        weight = linear.weight.value.detach()
        if weight.device.type != "cpu":
            continue
        if linear.is_int8:
            _add_int8(products, linear, weight)
        elif weight.dtype == torch.float32:
            _add_columns(products, linear, weight)
    return products


# Columns ------------------------------------------------------------------------------


def _add_columns(products: TorchProducts, linear: Linear, weight: torch.Tensor) -> None:
    matrix = linear.matrix(weight)  # (I, O)
    blocks = count_blocks(matrix.shape[1], torch.get_num_threads())
    # MKL takes a matrix whose rows or whose columns are contiguous.
    if blocks == 1 or matrix.numel() < LEAST_NUMBERS or 1 not in matrix.stride():
        return
    multiply = functools.partial(multiply_in_columns, in_columns(matrix, blocks))
    products.overrides[id(linear.layer)] = linear.override(multiply, FEW_ROWS)


def count_blocks(columns: int, threads: int) -> int:
    """The number of blocks of equal width: up to two for each of several threads."""
    most = min(2 * threads, columns // LEAST_COLUMNS) if threads > 1 else 1
    return next((x for x in range(most, 0, -1) if columns % x == 0), 1)


def in_columns(matrix: torch.Tensor, blocks: int) -> torch.Tensor:
    """(I, O) as (blocks, I, O / blocks), the same memory: a weight changed later counts."""
    return matrix.unflatten(1, (blocks, -1)).permute(1, 0, 2)


def multiply_in_columns(columns: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Rows (n, I) times a matrix as (blocks, I, O / blocks): (n, O)."""
    x = rows[None].expand(columns.shape[0], -1, -1)  # (blocks, n, I)
    x = torch.bmm(x, columns)  # (blocks, n, O / blocks)
    return x.transpose(0, 1).reshape(rows.shape[0], -1)  # (n, O)


# int8 ---------------------------------------------------------------------------------


def has_int8_products() -> bool:
    """Whether the processor has instructions for products of int8."""
    known = torch.cpu.get_capabilities()
    return any(known.get(name, False) for name in ("avx512_vnni", "avx_vnni", "amx_int8"))


def _add_int8(products: TorchProducts, linear: Linear, weight: torch.Tensor) -> None:
    if not has_int8_products():
        return
    matrix = linear.matrix(weight)  # (I, O)
    # The library wants the axis that is summed over last. An inference tensor has no version,
    # so that a change of it after a copy could not be noticed.
    if matrix.stride(0) != 1 and not weight.is_inference():
        products.copies.append(Copied(weight, weight._version))
        matrix = matrix.t().contiguous().t()
    multiply = functools.partial(multiply_in_int8, linear, matrix)
    products.overrides[id(linear.layer)] = linear.override(multiply, None)


def multiply_in_int8(linear: Linear, matrix: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Rows (n, I), quantised as Keras does, times an int8 matrix (I, O): (n, O) in floats."""
    layer = linear.layer
    scale = layer.embeddings_scale if linear.transposed else layer.kernel_scale
    numbers, row_scale = layer.inputs_quantizer(rows, axis=-1)  # (n, I), (n, 1)
    sums = torch.ops.aten._int_mm(numbers, matrix)  # (n, O) int32
    return sums.to(rows.dtype) / (row_scale * ops.reshape(scale, (1, -1)))  # (n, O)
