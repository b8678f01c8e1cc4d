"""The blocked way on TensorFlow: laid out where lengths are known, a loop elsewhere."""

import tensorflow as tf

from kerasattention.attend.inputs import Problem
from kerasattention.attend.kernels.tensorflow.loop import looped_attention
from kerasattention.attend.kernels.tensorflow.unrolled import (
    may_fold,
    plan_pieces,
    unrolled_attention,
)
from kerasattention.attend.tensors import Tensor, is_static

# Queries of a block: with half or twice as many a causal forward takes longer.
BLOCK = 128
# Those of a window that is folded, as a share of it: fewer keys are computed for nothing.
# Twice and half the share measured the same, within noise.
WINDOW_SHARE = 4
# Queries of a block of a loop, whose steps cost more to start.
LOOP_BLOCK = 256
# Beyond so many pieces a graph becomes slow to build. A loop takes longer than blocks of twice
# the size do.
MOST_PIECES = 48


def blocked_attention(problem: Problem, size: int | None = None) -> Tensor:
    """(B, K, G, T, Hv)."""
    problem = problem.scaled()
    if is_static(problem.query.shape[3], problem.key.shape[2]):
        for pieces in (plan_pieces(problem, x) for x in _block_sizes(problem, size)):
            if tf.executing_eagerly() or len(pieces) <= MOST_PIECES:
                return unrolled_attention(problem, pieces)
    return looped_attention(problem, size or LOOP_BLOCK)


def _block_sizes(problem: Problem, given: int | None) -> list[int]:
    """Queries of a block as they should be, and as many as may be where that is too few."""
    if given is not None:
        return [given]
    if may_fold(problem):
        return [min(max(problem.visibility.window // WINDOW_SHARE, 32), BLOCK)]
    return [BLOCK, 2 * BLOCK]
