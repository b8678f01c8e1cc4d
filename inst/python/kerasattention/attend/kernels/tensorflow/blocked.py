"""The blocked way on TensorFlow: laid out where lengths are known, a loop elsewhere."""

import tensorflow as tf

from kerasattention.attend.inputs import AttentionInputs
from kerasattention.attend.kernels.tensorflow.loop import looped_attention
from kerasattention.attend.kernels.tensorflow.unrolled import (
    may_fold,
    plan_strided_blocks,
    unrolled_attention,
)
from kerasattention.attend.tensors import Tensor, is_static

# Queries of a block: with half or twice as many a causal forward takes longer.
BLOCK_SIZE = 128
# Those of a window that is folded, as a share of it: fewer keys are computed for nothing.
# Twice and half the share measured the same, within noise.
WINDOW_SHARE = 4
# Queries of a block of a loop, whose steps cost more to start.
LOOP_BLOCK_SIZE = 256
# Beyond so many pieces a graph becomes slow to build. A loop takes longer than blocks of twice
# the size do.
MAX_UNROLLED_BLOCKS = 48


def blocked_attention(inputs: AttentionInputs, size: int | None = None) -> Tensor:
    """(B, K, G, T, Hv)."""
    inputs = inputs.scaled()
    if is_static(inputs.query.shape[3], inputs.key.shape[2]):
        for blocks in (plan_strided_blocks(inputs, x) for x in _block_sizes(inputs, size)):
            if tf.executing_eagerly() or len(blocks) <= MAX_UNROLLED_BLOCKS:
                return unrolled_attention(inputs, blocks)
    return looped_attention(inputs, size or LOOP_BLOCK_SIZE)


def _block_sizes(inputs: AttentionInputs, given: int | None) -> list[int]:
    """Queries of a block as they should be, and as many as may be where that is too few."""
    if given is not None:
        return [given]
    if may_fold(inputs):
        return [min(max(inputs.mask.window // WINDOW_SHARE, 32), BLOCK_SIZE)]
    return [BLOCK_SIZE, 2 * BLOCK_SIZE]
