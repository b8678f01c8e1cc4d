"""Loops over tiles of queries and keys with an online softmax, on JAX outside accelerators.

XLA gives every step's largest buffer new memory, and pages of it cost more than the
arithmetic: a product of 1024 x 64 x 4096 runs at 72 GFLOP/s, one of 1024 x 64 x 512 at
250, an exponential in cache ten times as fast as one in memory. So logits exist in tiles
that stay in cache, and a row's softmax is carried from tile to tile (Milakov and
Gimelshein 2018; Dao et al. 2022). A loop is compiled once for any T.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kerasattention.attend import softmax
from kerasattention.attend.block import block_logits, combine, keep_factor, sink_logits
from kerasattention.attend.gradient import with_gradient
from kerasattention.attend.inputs import AttentionInputs
from kerasattention.attend.kernels.jax.tile_lists import takes_lists, tile_lists
from kerasattention.attend.kernels.jax.tile_loops import (
    Named,
    TileSize,
    by_sample,
    mask_uncounted,
    over_blocks,
    over_tiles,
    put,
    widest_range,
)
from kerasattention.attend.kernels.jax.tiled_backward import backward as backward_pass
from kerasattention.attend.tensors import Columns, Span, is_static, slice_axis

Tensor = jax.Array

# Queries of a tile.
BLOCK_SIZE = 256
# Logits of a tile, over all heads and samples: 1 to 4 MB.
TILE_LOGITS = 2**20
COLUMNS = 256
# Tiles as wide as a window are rounded up: the fastest round of a gradient took 5 and 16% less
# with 320 columns than with 319, in two runs on a busy machine.
COLUMN_STEP = 32


class SoftmaxCarry(NamedTuple):
    """The online softmax of the tiles so far: running max and sum (..., 1), running output."""

    row_max: Tensor
    denominator: Tensor
    output: Tensor


def tiled_attention(
    inputs: AttentionInputs, block_size: int | None = None, tile: TileSize | None = None
) -> Tensor:
    """(B, K, G, T, Hv); T and S must be known."""
    # JAX traces tensors only: an offset that is one becomes positions.
    mask = inputs.mask.with_explicit_positions(inputs.rows())
    inputs = dataclasses.replace(inputs.scaled(), mask=mask)
    named = {name: jnp.asarray(x) for name, x in inputs.tensors().items()}
    return _tiled(named, inputs.without_tensors(), tile or choose_tile_size(inputs, block_size))


def choose_tile_size(
    inputs: AttentionInputs,
    block_size: int | None = None,
    columns: int = COLUMNS,
    tile_logits: int = TILE_LOGITS,
) -> TileSize:
    """Tiles of a size that stays in cache; keys as many as a window leaves, if it is narrow."""
    batch, kv_heads, groups, length, _ = inputs.query.shape
    keys = inputs.key.shape[2]
    rows = min(block_size or BLOCK_SIZE, length)
    window = inputs.mask.usual_window(length, keys)
    if window is not None:
        # A block of queries sees all of their windows: a quarter takes less than a whole.
        rows = min(rows, max(window // 4, 32))
    width = min(columns, keys)
    widest = widest_range(inputs, rows)
    if widest is not None and widest <= 4 * columns:
        width = min(-(-widest // COLUMN_STEP) * COLUMN_STEP, keys)
    largest = width
    if takes_lists(inputs.mask):
        largest = max(width, sum(tile_lists(inputs, max(rows, 1), max(width, 1)).widths))
    # Batches of unknown size, as in an exported function, are not divided.
    is_large = (
        is_static(batch) and batch > 1 and batch * kv_heads * groups * rows * largest > tile_logits
    )
    return TileSize(max(rows, 1), max(width, 1), is_large and not _has_trained_bias(inputs))


def _has_trained_bias(inputs: AttentionInputs) -> bool:
    return inputs.bias is not None and bool(inputs.bias.differentiable())


@functools.partial(jax.jit, static_argnames=("frame", "tile"))
def _tiled(named: Named, frame: AttentionInputs, tile: TileSize) -> Tensor:
    """Compiled once for each kind of inputs, also where nothing around it is compiled."""

    def forward(given: AttentionInputs) -> tuple[Tensor, Tensor]:
        return forward_with_lse(given, tile)

    def backward(given: AttentionInputs, output: Tensor, lse: Tensor, upstream: Tensor) -> Named:
        return backward_pass(given, tile, output, lse, upstream)

    return with_gradient(forward, backward, frame.with_tensors(named))


# Forward -------------------------------------------------------------------------------


def forward_with_lse(
    inputs: AttentionInputs, tile: TileSize, lse_of_empty: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Output (B, K, G, T, Hv) and lse (B, K, G, T, 1), `lse_of_empty` for a row without keys."""
    if tile.by_sample:
        whole = tile._replace(by_sample=False)
        return by_sample(inputs, lambda one, _: forward_with_lse(one, whole, lse_of_empty), ())
    batch, kv_heads, groups, length, _ = inputs.query.shape
    shape = (batch, kv_heads, groups, length)

    def visit(rows: Span, wanted: Any, carry: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        parts = _forward_block(inputs, rows, tile.columns, lse_of_empty)
        if length == rows.size:
            return parts
        return put(carry[0], parts[0], 3, rows.start), put(
            carry[1], parts[1], 3, rows.start
        )  # (B, K, G, T, Hv), (B, K, G, T, 1)

    widths = (inputs.value.shape[-1], 1)
    empty = tuple(
        jnp.zeros((*shape, width), inputs.accumulator) for width in widths
    )  # (B, K, G, T, Hv), (B, K, G, T, 1)
    return over_blocks(length, tile.rows, visit, empty)


def _forward_block(
    inputs: AttentionInputs, rows: Span, columns: int, lse_of_empty: float
) -> tuple[Tensor, Tensor]:
    batch, kv_heads, groups = inputs.query.shape[:3]
    shape = (batch, kv_heads, groups, rows.size)
    carry = SoftmaxCarry(
        jnp.full((*shape, 1), -jnp.inf, inputs.accumulator),  # (B, K, G, t, 1)
        jnp.zeros((*shape, 1), inputs.accumulator),  # (B, K, G, t, 1)
        jnp.zeros((*shape, inputs.value.shape[-1]), inputs.accumulator),  # (B, K, G, t, Hv)
    )

    def visit(
        inputs: AttentionInputs, columns: Columns, counted: Any, carry: SoftmaxCarry
    ) -> SoftmaxCarry:
        logits, _ = block_logits(inputs, rows, columns)  # (B, K, G, t, s)
        logits = mask_uncounted(logits, counted)  # (B, K, G, t, s)
        return _update(inputs, rows, columns, logits, carry)

    carry = over_tiles(inputs, rows, columns, visit, carry)
    carry = _update_by_sink(inputs, carry)
    output = carry.output * softmax.reciprocal(
        carry.denominator, inputs.may_be_empty
    )  # (B, K, G, t, Hv)
    empty = carry.denominator == 0.0  # (B, K, G, t, 1)
    lse = _finite(carry.row_max) + jnp.log(
        jnp.where(empty, 1.0, carry.denominator)
    )  # (B, K, G, t, 1)
    if lse_of_empty:
        lse = jnp.where(empty, lse_of_empty, lse)  # (B, K, G, t, 1)
    return output, lse


def _update(
    inputs: AttentionInputs, rows: Span, columns: Columns, logits: Tensor, carry: SoftmaxCarry
) -> SoftmaxCarry:
    """One more tile of keys."""
    row_max = jnp.maximum(carry.row_max, jnp.max(logits, axis=-1, keepdims=True))  # (B, K, G, t, 1)
    numerator = jnp.exp(logits - _finite(row_max))  # (B, K, G, t, s)
    decay = jnp.exp(carry.row_max - _finite(row_max))  # (B, K, G, t, 1)
    denominator = carry.denominator * decay + jnp.sum(
        numerator, axis=-1, keepdims=True
    )  # (B, K, G, t, 1)
    keep = keep_factor(inputs, rows, columns)  # (B, K, G, t, s)
    if keep is not None:
        numerator = numerator * keep  # (B, K, G, t, s)
    value = slice_axis(inputs.value, 2, columns)  # (B, K, s, Hv)
    output = carry.output * decay + combine(numerator, value, inputs.groups)  # (B, K, G, t, Hv)
    return SoftmaxCarry(row_max, denominator, output)


def _update_by_sink(inputs: AttentionInputs, carry: SoftmaxCarry) -> SoftmaxCarry:
    sink = sink_logits(inputs)  # (1, K, G, 1, 1)
    if sink is None:
        return carry
    row_max = jnp.maximum(carry.row_max, sink)  # (B, K, G, t, 1)
    decay = jnp.exp(carry.row_max - row_max)  # (B, K, G, t, 1)
    denominator = carry.denominator * decay + jnp.exp(sink - row_max)  # (B, K, G, t, 1)
    return SoftmaxCarry(row_max, denominator, carry.output * decay)


def _finite(row_max: Tensor) -> Tensor:
    """0 for a row without keys so far: -inf - -inf is NaN."""
    return jnp.where(row_max == -jnp.inf, 0.0, row_max)  # (B, K, G, t, 1)
