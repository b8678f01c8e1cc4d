"""How a problem is cut into pieces for a kernel that takes a mask or a triangle.

A kernel's own causal rule aligns both axes at the start of what it is given, and a
mask costs memory. So a problem is one piece where the kernel's rule and a mask that is
the same for all queries describe it, and else blocks of queries with their keys.
Blocks of one shape and spacing, as a window leaves them, are one run of pieces.
"""

import dataclasses
import functools
from typing import NamedTuple

from keras import ops

from kerasattention.attend.inputs import Problem
from kerasattention.attend.mask import Visibility
from kerasattention.attend.tensors import Span, Tensor

# Queries a block without a window has: smaller wastes less above the diagonal, larger
# calls the kernel less often. Of 256, 512, 768 and 1024 the first took the least time.
BLOCK = 256
# Queries a block of a window has, as a share of the window. A quarter took less time than a
# half or the whole.
WINDOW_SHARE = 4


class Piece(NamedTuple):
    """A run of queries against a run of keys, `count` times, each `rows.size` further on."""

    rows: Span
    columns: Span
    triangle: bool = False
    count: int = 1


def plan_pieces(problem: Problem, broadcasts: bool) -> list[Piece]:
    """Pieces that cover every query once; a piece may have no keys.

    Args:
        problem: What is to be cut; T and S must be known.
        broadcasts: Whether the kernel takes a mask of one row for all queries of any
            number of heads, and beside its causal rule.
    """
    visibility = problem.visibility
    rows, columns = problem.rows(), problem.columns()
    if rows.size == 0:
        return []
    if _alike_for_all_queries(problem):
        heads = 1 if visibility.mask is None else visibility.mask.shape[1]
        if not visibility.hides_by_position(rows, columns) and (broadcasts or heads == 1):
            return [Piece(rows, columns)]
        unmasked = not visibility.hides_by_content
        if _is_triangle(visibility, rows.size) and (broadcasts or unmasked):
            return [Piece(rows, Span(0, min(rows.size, columns.size)), triangle=True)]
    size = _block_size(visibility, rows.size)
    blocks = []
    for start in range(0, rows.size, size):
        block = Span(start, min(size, rows.size - start))
        blocks.append(Piece(block, visibility.key_range(block, columns.size)))
    # A run is computed sample by sample, blocks one by one: whichever is fewer calls.
    if not _may_repeat(problem) or len(blocks) <= problem.query.shape[0]:
        return blocks
    return _join_runs(blocks)


def piece_mask(problem: Problem, piece: Piece) -> Tensor | None:
    """What a kernel adds to the logits of a piece.

    Returns:
        Zeros and minus infinities, plus the bias, in the accumulator's dtype, which the
        kernel of the CPU reads whatever it is given. They broadcast to (B, N, t, s), or to
        (B, count, 1, t, s) for a run; None where all is visible.
    """
    visibility, bias = problem.visibility, problem.bias
    if piece.triangle:
        visibility = dataclasses.replace(visibility, causal=False, window=None)
    if piece.count > 1:
        return _in_accumulator(problem, _run_mask(visibility, piece))
    visible = visibility.block(piece.rows, piece.columns)
    mask = None if visible is None else ops.where(visible, 0.0, float("-inf"))
    if bias is None:
        return _in_accumulator(problem, mask)
    added = bias.block(problem.visibility, piece.rows, piece.columns)
    return _in_accumulator(problem, added if mask is None else added + mask)


def _in_accumulator(problem: Problem, mask: Tensor | None) -> Tensor | None:
    return None if mask is None else ops.cast(mask, problem.accumulator)


def run_columns(x: Tensor, piece: Piece) -> Tensor:
    """(B, S) to (B, count, s): the columns of each piece of a run."""
    starts = ops.arange(piece.count, dtype="int32") * piece.rows.size + piece.columns.start
    within = ops.arange(piece.columns.size, dtype="int32")
    return ops.take(x, starts[:, None] + within[None, :], axis=1)


def _run_mask(visibility: Visibility, piece: Piece) -> Tensor | None:
    by_position = dataclasses.replace(visibility, key_mask=None)
    masks = []
    position = by_position.block(piece.rows, piece.columns)
    if position is not None:
        masks.append(position[None])  # (1, 1, 1, t, s)
    if visibility.key_mask is not None:
        masks.append(run_columns(visibility.key_mask, piece)[:, :, None, None, :])
    if not masks:
        return None
    return ops.where(functools.reduce(ops.logical_and, masks), 0.0, float("-inf"))


def _alike_for_all_queries(problem: Problem) -> bool:
    """Whether all but the positions hides the same keys from every query."""
    visibility = problem.visibility
    mask = visibility.mask
    return (
        problem.bias is None
        and visibility.query_segments is None
        and (mask is None or mask.shape[2] == 1)
    )


def _may_repeat(problem: Problem) -> bool:
    """Whether blocks of one shape differ in nothing but the key mask."""
    visibility = problem.visibility
    return (
        visibility.window is not None
        and visibility.positions_are_indices
        and visibility.mask is None
        and visibility.query_segments is None
        and problem.bias is None
    )


def _is_triangle(visibility: Visibility, length: int) -> bool:
    """Whether the positions say no more than a causal rule aligned at the start."""
    return (
        visibility.causal
        and visibility.positions_are_indices
        and visibility.offset == 0
        and (visibility.window is None or visibility.window >= length)
    )


def _block_size(visibility: Visibility, length: int) -> int:
    if visibility.window is None or length <= BLOCK:
        return BLOCK
    return min(max(visibility.window // WINDOW_SHARE // 32 * 32, 32), 2 * BLOCK)


def _join_runs(blocks: list[Piece]) -> list[Piece]:
    """Joins neighbours of one shape into runs."""
    joined: list[Piece] = []
    for block in blocks:
        last = joined[-1] if joined else None
        if last is not None and _continues(last, block):
            joined[-1] = last._replace(count=last.count + 1)
        else:
            joined.append(block)
    return joined


def _continues(run: Piece, block: Piece) -> bool:
    step = run.count * run.rows.size
    return (
        run.rows.size == block.rows.size
        and run.columns.size == block.columns.size
        and run.columns.size > 0
        and block.rows.start == run.rows.start + step
        and block.columns.start == run.columns.start + step
    )
