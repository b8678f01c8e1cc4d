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
from kerasattention.attend.tensors import Columns, KeySpans, Span, Tensor, one_span, spans_of

# Queries a block without a window has: smaller wastes less above the diagonal, larger
# calls the kernel less often. Of 256, 512, 768 and 1024 the first took the least time.
BLOCK_SIZE = 256
# Queries a block of a window has, as a share of the window. A quarter took less time than a
# half or the whole.
WINDOW_SHARE = 4


# Numbers of keys and values that strided blocks with several spans may copy: 16 MB.
MOST_COPIED = 2**22
# Queries of a call whose results are merged with others: they stay in cache.
MERGED_ROWS = 2048


class StridedBlocks(NamedTuple):
    """A block of queries with its keys, `count` times, each `rows.size` further on.

    `causal` asks for the kernel's causal rule, aligned at the start of both. `fixed` holds the
    numbers of those of several spans of keys that are the same for all blocks. `merged` says that
    the queries stood in the plan before, with other keys: the results are to be merged.
    """

    rows: Span
    columns: Columns
    causal: bool = False
    count: int = 1
    fixed: tuple[int, ...] = ()
    merged: bool = False

    @property
    def spans(self) -> list["StridedBlocks"]:
        """The same blocks with one of their spans of keys each."""
        return [
            self._replace(columns=span, fixed=(0,) if number in self.fixed else ())
            for number, span in enumerate(spans_of(self.columns))
        ]

    @property
    def all_rows(self) -> Span:
        return Span(self.rows.start, self.rows.size * self.count)

    @property
    def all_columns(self) -> Columns:
        if isinstance(self.columns, KeySpans):
            return KeySpans(tuple(one_span(part.all_columns) for part in self.spans))
        if self.fixed:
            return self.columns
        return Span(self.columns.start, self.columns.size + self.rows.size * (self.count - 1))


def plan_kernel_calls(
    inputs: AttentionInputs,
    broadcasts: bool,
    block_size: int | None = None,
    merges: bool = False,
) -> list[StridedBlocks]:
    """Strided blocks that cover every query once; some may have no keys.

    Args:
        inputs: T and S must be known.
        broadcasts: Whether the kernel takes a mask of one row for all queries of any
            number of heads, and beside its causal rule.
        merges: Whether the caller merges results of the same queries with different keys. Then
            keys that are the same for all of the strided blocks are calls of their own: no key
            beside a window is copied.
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
    # Strided blocks take a call for each sample, others one for each block: the fewer calls.
    strided = _may_stride(inputs) and -(-rows.size // size) > inputs.query.shape[0]
    if mask.is_band or not mask.positions_are_indices:
        return _plan_blocks(mask, rows.size, columns.size, size, strided, 0)
    frame, numbers = mask.only_positions().without_tensors(), copied_numbers(inputs)
    plan = _plan_listed_blocks(
        frame, rows.size, columns.size, size, strided, 0 if merges else numbers
    )
    if not merges:
        return list(plan)
    return [part for blocks in plan for part in _without_copies(blocks, numbers)]


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
    if isinstance(blocks.columns, KeySpans):
        return ops.concatenate([strided_columns(x, part) for part in blocks.spans], axis=2)
    columns, step = one_span(blocks.columns), 0 if blocks.fixed else blocks.rows.size
    starts = ops.arange(blocks.count, dtype="int32") * step + columns.start  # (count)
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
        (mask.reach.before is not None or not mask.is_band)
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


def _plan_blocks(
    mask: AttentionMask, length: int, keys: int, size: int, strided: bool, numbers: int
) -> list[StridedBlocks]:
    blocks = []
    for start in range(0, length, size):
        block = Span(start, min(size, length - start))
        blocks.append(StridedBlocks(block, mask.key_columns(block, keys)))
    return _join_strided(mask, blocks, numbers) if strided else blocks


# Rules other than a window ask for every block: 25 ms for the 128 blocks of T = 8192.
@functools.lru_cache(maxsize=64)
def _plan_listed_blocks(
    mask: AttentionMask, length: int, keys: int, size: int, strided: bool, numbers: int
) -> tuple[StridedBlocks, ...]:
    return tuple(_plan_blocks(mask, length, keys, size, strided, numbers))


def _without_copies(blocks: StridedBlocks, numbers: int) -> list[StridedBlocks]:
    """Strided blocks with one span of keys that moves with the queries, then those that do not."""
    if blocks.count == 1 or not isinstance(blocks.columns, KeySpans):
        return [blocks]
    moving = [part for part in blocks.spans if not part.fixed]
    if len(moving) != 1:
        return _in_parts(blocks, max(MOST_COPIED // max(blocks.columns.size * numbers, 1), 1))
    fixed = [part.columns for part in blocks.spans if part.fixed]
    rows = blocks.all_rows
    starts = range(rows.start, rows.stop, MERGED_ROWS)
    parts = [Span(start, min(MERGED_ROWS, rows.stop - start)) for start in starts]
    return moving + [
        StridedBlocks(part, columns, merged=True) for columns in fixed for part in parts
    ]


def _in_parts(blocks: StridedBlocks, most: int) -> list[StridedBlocks]:
    """The same blocks, at most so many at a time."""
    step = blocks.rows.size
    return [
        _shifted(blocks, first * step)._replace(count=min(most, blocks.count - first))
        for first in range(0, blocks.count, most)
    ]


def _shifted(blocks: StridedBlocks, by: int) -> StridedBlocks:
    spans = [
        span if part.fixed else Span(span.start + by, span.size)
        for part, span in zip(blocks.spans, spans_of(blocks.columns), strict=True)
    ]
    rows = Span(blocks.rows.start + by, blocks.rows.size)
    return blocks._replace(rows=rows, columns=KeySpans(tuple(spans)))


def _join_strided(
    mask: AttentionMask, blocks: list[StridedBlocks], numbers: int
) -> list[StridedBlocks]:
    """Joins neighbours of one shape into strided blocks."""
    joined: list[StridedBlocks] = []
    for block in blocks:
        last = joined[-1] if joined else None
        fixed = None if last is None else fixed_spans(mask, last, block, numbers)
        if last is not None and fixed is not None:
            joined[-1] = last._replace(count=last.count + 1, fixed=fixed)
        else:
            joined.append(block)
    return joined


def fixed_spans(
    mask: AttentionMask, run: StridedBlocks, block: StridedBlocks, numbers: int
) -> tuple[int, ...] | None:
    """Whether a block can be joined to strided blocks before it.

    Args:
        mask: Whose rules of positions say whether their masks are equal.
        run: The strided blocks.
        block: The next block.
        numbers: Of `copied_numbers()`.

    Returns:
        The numbers of its spans of keys that are the same as theirs; None if it is not alike.
    """
    spans, others = spans_of(run.columns), spans_of(block.columns)
    sizes, step = [span.size for span in spans], run.count * run.rows.size
    alike = (
        run.rows.size == block.rows.size
        and block.rows.start == run.rows.start + step
        and sizes == [span.size for span in others]
        and 0 not in sizes
    )
    if not alike:
        return None
    steps = [other.start - span.start for span, other in zip(spans, others, strict=True)]
    fixed = tuple(number for number, found in enumerate(steps) if found == 0)
    if any(found not in (0, step) for found in steps) or (run.count > 1 and fixed != run.fixed):
        return None
    if mask.is_band:  # of one span
        return None if fixed else ()
    if len(spans) > 1 and (run.count + 1) * run.columns.size * numbers > MOST_COPIED:
        return None
    first, other = ((x.rows, x.columns) for x in (run, block))
    return fixed if mask.block_signature(*first) == mask.block_signature(*other) else None


def copied_numbers(inputs: AttentionInputs) -> int:
    """How many numbers are copied for each key of strided blocks with several spans."""
    return inputs.kv_heads * (inputs.query.shape[-1] + inputs.value.shape[-1])
