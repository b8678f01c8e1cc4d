"""Divides a call into blocks for kernels with a mask argument and a causal rule.

A kernel's own causal rule aligns both axes at the start of what it is given, and a
mask costs memory. So one call does all where the kernel's rule and a mask that is
the same for all queries describe the mask. Otherwise there are blocks of queries with their keys.
Blocks of one shape and spacing, as a window leaves them, are strided: one call for each sample.
"""

import functools
from typing import NamedTuple

from keras import ops

from kerasattention.attend.inputs import AttentionInputs
from kerasattention.attend.mask import AttentionMask
from kerasattention.attend.tensors import Columns, KeySpans, Span, Tensor, one_span

# Queries a block without a window has: smaller wastes less above the diagonal, larger
# calls the kernel less often. Of 256, 512, 768 and 1024 the first took the least time.
BLOCK_SIZE = 256
# Queries a block of a window has, as a share of the window. A quarter took less time than a
# half or the whole.
WINDOW_SHARE = 4


class StridedBlocks(NamedTuple):
    """A block of queries with its keys, `count` times, each `rows.size` further on.

    `causal` asks for the kernel's causal rule, aligned at the start of both. Several spans of keys
    are of one block only.
    """

    rows: Span
    columns: Columns
    causal: bool = False
    count: int = 1

    @property
    def all_rows(self) -> Span:
        return Span(self.rows.start, self.rows.size * self.count)

    @property
    def all_columns(self) -> Columns:
        if isinstance(self.columns, KeySpans):
            return self.columns
        return Span(self.columns.start, self.columns.size + self.rows.size * (self.count - 1))


def plan_kernel_calls(
    inputs: AttentionInputs, broadcasts: bool, block_size: int | None = None
) -> list[StridedBlocks]:
    """Strided blocks that cover every query once; some may have no keys.

    Args:
        inputs: T and S must be known.
        broadcasts: Whether the kernel takes a mask of one row for all queries of any
            number of heads, and beside its causal rule.
    """
    mask = inputs.mask
    rows, columns = inputs.rows(), inputs.columns()
    if rows.size == 0:
        return []
    if inputs.bias is None and not mask.differs_by_query:
        is_whole = not mask.masks_positions(rows, columns)
        if is_whole and (broadcasts or mask.num_heads == 1):
            return [StridedBlocks(rows, columns)]
        if mask.is_causal_from_start(rows.size) and (broadcasts or not mask.masks_tokens):
            return [StridedBlocks(rows, Span(0, min(rows.size, columns.size)), causal=True)]
    size = block_size or _block_size(mask, rows.size, columns.size)
    blocks = []
    for start in range(0, rows.size, size):
        block = Span(start, min(size, rows.size - start))
        blocks.append(StridedBlocks(block, mask.key_columns(block, columns.size)))
    # Strided blocks take a call for each sample, others one for each block: the fewer calls.
    if not _may_stride(inputs) or len(blocks) <= inputs.query.shape[0]:
        return blocks
    return _join_strided(blocks)


def additive_mask(inputs: AttentionInputs, blocks: StridedBlocks) -> Tensor | None:
    """The mask and bias that a kernel adds to the logits of strided blocks.

    Returns:
        Zeros and minus infinities, plus the bias, in the accumulator's dtype, which the
        kernel of the CPU reads whatever it is given. They broadcast to (B, N, t, s), or to
        (B, count, 1, t, s) where `count` > 1; None where all is visible.
    """
    mask, bias = inputs.mask, inputs.bias
    if blocks.causal:
        mask = mask.without_position_rules()
    if blocks.count > 1:
        return _in_accumulator(inputs, _strided_mask(inputs, blocks))
    visible = mask.block_mask(blocks.rows, blocks.columns)  # (B|1, N|1, t|1, s|1)
    mask = (
        None if visible is None else ops.where(visible, 0.0, float("-inf"))
    )  # (B|1, N|1, t|1, s|1)
    if bias is None:
        return _in_accumulator(inputs, mask)
    added = bias.block(inputs.mask, blocks.rows, blocks.columns)  # (B|1, N|1, t|1, s|1)
    return _in_accumulator(inputs, added if mask is None else added + mask)


def _in_accumulator(inputs: AttentionInputs, mask: Tensor | None) -> Tensor | None:
    return None if mask is None else ops.cast(mask, inputs.accumulator)


def strided_columns(x: Tensor, blocks: StridedBlocks) -> Tensor:
    """(B, S) to (B, count, s): the columns of each of the strided blocks."""
    columns = one_span(blocks.columns)
    starts = ops.arange(blocks.count, dtype="int32") * blocks.rows.size + columns.start  # (count)
    within = ops.arange(columns.size, dtype="int32")  # (s)
    return ops.take(x, starts[:, None] + within[None, :], axis=1)  # (B, count, s)


def _strided_mask(inputs: AttentionInputs, blocks: StridedBlocks) -> Tensor | None:
    masks = []
    by_position = inputs.mask.only_positions().block_mask(
        blocks.rows, blocks.columns
    )  # (1, 1, t, s)
    if by_position is not None:
        masks.append(by_position[None])  # (1, 1, 1, t, s)
    real = inputs.mask.real_keys(inputs.columns())  # (B, S)
    if real is not None:
        masks.append(strided_columns(real, blocks)[:, :, None, None, :])  # (B, count, 1, 1, s)
    if not masks:
        return None
    return ops.where(
        functools.reduce(ops.logical_and, masks), 0.0, float("-inf")
    )  # (B|1, count|1, 1, t|1, s)


def _may_stride(inputs: AttentionInputs) -> bool:
    """Whether blocks of one shape differ in nothing but the padding of keys."""
    mask = inputs.mask
    return (
        mask.reach.before is not None
        and mask.is_band
        and mask.positions_are_indices
        and mask.is_per_token
        and not mask.differs_by_query
        and inputs.bias is None
    )


def _block_size(mask: AttentionMask, length: int, keys: int) -> int:
    window = mask.usual_window(length, keys)
    if window is None or length <= BLOCK_SIZE:
        return BLOCK_SIZE
    return min(max(window // WINDOW_SHARE // 32 * 32, 32), 2 * BLOCK_SIZE)


def _join_strided(blocks: list[StridedBlocks]) -> list[StridedBlocks]:
    """Joins neighbours of one shape into strided blocks."""
    joined: list[StridedBlocks] = []
    for block in blocks:
        last = joined[-1] if joined else None
        if last is not None and _continues(last, block):
            joined[-1] = last._replace(count=last.count + 1)
        else:
            joined.append(block)
    return joined


def _continues(run: StridedBlocks, block: StridedBlocks) -> bool:
    step = run.count * run.rows.size
    return (
        run.rows.size == block.rows.size
        and isinstance(run.columns, Span)
        and isinstance(block.columns, Span)
        and run.columns.size == block.columns.size
        and run.columns.size > 0
        and block.rows.start == run.rows.start + step
        and block.columns.start == run.columns.start + step
    )
