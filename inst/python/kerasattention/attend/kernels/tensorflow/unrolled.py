"""Blocks of queries laid out one by one, on TensorFlow where lengths are known.

Blocks of a window are folded into the batch (`windows.py`) and computed some million logits at
once. Gradients of overlapping keys are summed in `accumulate.py`.
"""

import tensorflow as tf

from kerasattention.attend.block import Block
from kerasattention.attend.gradient import Named, with_gradient
from kerasattention.attend.inputs import AttentionInputs
from kerasattention.attend.kernels.tensorflow.accumulate import BiasSum, ColumnSum
from kerasattention.attend.kernels.tensorflow.block import (
    BlockGradients,
    block_gradients,
    block_output,
    row_sums,
)
from kerasattention.attend.kernels.tensorflow.head_groups import (
    can_split_heads,
    join_head_groups,
    of_head_group,
)
from kerasattention.attend.kernels.tensorflow.windows import (
    alike_blocks,
    differs_in_tokens_only,
    fold,
    fold_rows,
    unfold_rows,
    unfold_spans,
)
from kerasattention.attend.tensors import Span, Tensor, is_compiled_by_xla, is_static, slice_axis
from kerasattention.attend.tiling import StridedBlocks

# Queries of a block: with half or twice as many a causal forward takes longer.
BLOCK_SIZE = 128
# Queries of a block of a folded window, as a share of the window: fewer keys are computed in
# vain. Twice and half the share measured the same, within noise.
WINDOW_SHARE = 4
# With more blocks a graph becomes slow to build. A loop takes longer than blocks of twice the size.
MAX_UNROLLED_BLOCKS = 48
# Logits of all heads and samples that one step of strided blocks may have.
STRIDED_LOGITS = 2**21
# With more queries two head groups begin with copies that are too large for what they save.
MAX_QUERIES_OF_HEAD_GROUPS = 8192


def unrolled_attention(
    inputs: AttentionInputs, block_size: int | None = None, strided_logits: int = STRIDED_LOGITS
) -> Tensor:
    """(B, K, G, T, Hv)."""
    inputs = inputs.scaled()
    steps = plan_steps(inputs, block_size, strided_logits)
    head_groups = plan_head_groups(inputs)

    def forward(given: AttentionInputs) -> tuple[Tensor, Tensor]:
        outputs = [_forward(of_head_group(given, heads), steps) for heads in head_groups]
        # Heads before rows: the parts of a step are freed as soon as they are joined.
        rows = [join_head_groups(parts) for parts in zip(*outputs, strict=True)]
        return tf.concat(rows, axis=3), tf.zeros(())  # (B, K, G, T, Hv)

    def backward(given: AttentionInputs, output: Tensor, _: Tensor, upstream: Tensor) -> Named:
        upstream = tf.cast(upstream, inputs.accumulator)  # (B, K, G, T, Hv)
        found = []
        for heads in head_groups:
            part = (
                slice_axis(x, 1, heads) for x in (output, upstream)
            )  # (B, k, G, T, Hv), k heads of the group
            found.append(_backward(of_head_group(given, heads), steps, *part))
        if len(found) == 1:
            return found[0]
        axes = {"sink": 0}
        return {
            name: tf.concat([x[name] for x in found], axis=axes.get(name, 1)) for name in found[0]
        }

    return with_gradient(forward, backward, inputs)


# Which heads ------------------------------------------------------------------------------


def plan_head_groups(inputs: AttentionInputs) -> list[Span]:
    """The key heads of each head group, which are computed apart from one another.

    With two groups a graph runs the product of one while the small operations of the other leave
    a core idle. Each group holds half of the logits of all heads.
    """
    kv_heads = inputs.kv_heads
    # Without a graph nothing runs in parallel.
    one_group = not can_split_heads(inputs) or tf.executing_eagerly() or is_compiled_by_xla()
    if one_group or inputs.query.shape[3] > MAX_QUERIES_OF_HEAD_GROUPS:
        return [Span(0, kv_heads)]
    half = kv_heads // 2
    return [Span(0, half), Span(half, kv_heads - half)]


# Which blocks -----------------------------------------------------------------------------


def is_preferred(inputs: AttentionInputs, block_size: int | None) -> bool:
    """Where lengths are known; in a graph, where it has no more than a few dozen blocks.

    A graph that does not know the ids of spans leaves keys out in a loop only.
    """
    if not is_static(inputs.query.shape[3], inputs.key.shape[2]):
        return False
    has_spans = inputs.mask.query_bidirectional is not None
    if has_spans and not tf.executing_eagerly() and not is_compiled_by_xla():
        return False
    return tf.executing_eagerly() or len(plan_steps(inputs, block_size)) <= MAX_UNROLLED_BLOCKS


def plan_steps(
    inputs: AttentionInputs, block_size: int | None, strided_logits: int = STRIDED_LOGITS
) -> list[StridedBlocks]:
    """The strided blocks, of a size for which a graph has no more of them than it should."""
    if block_size is not None:
        return plan_strided_blocks(inputs, block_size, strided_logits)
    if may_fold(inputs):
        size = min(max(inputs.mask.reach.window // WINDOW_SHARE, 32), BLOCK_SIZE)
        return plan_strided_blocks(inputs, size, strided_logits)
    steps = plan_strided_blocks(inputs, _block_size(inputs), strided_logits)
    if tf.executing_eagerly() or len(steps) <= MAX_UNROLLED_BLOCKS:
        return steps
    return plan_strided_blocks(inputs, 2 * BLOCK_SIZE)


def _block_size(inputs: AttentionInputs) -> int:
    window = None
    if not inputs.mask.is_band:
        window = inputs.mask.usual_window(inputs.query.shape[3], inputs.key.shape[2])
    if window is None:
        return BLOCK_SIZE
    return min(max(window // WINDOW_SHARE // 32 * 32, 32), BLOCK_SIZE)


def plan_strided_blocks(
    inputs: AttentionInputs, size: int, strided_logits: int = STRIDED_LOGITS
) -> list[StridedBlocks]:
    """Strided blocks that cover every query once; one may have no keys."""
    length, keys = inputs.query.shape[3], inputs.key.shape[2]
    steps = []
    start = 0
    while start < length:
        found = _strided(inputs, start, size, strided_logits)
        found = found or alike_blocks(inputs, start, size, strided_logits)
        if found is None:
            rows = Span(start, min(size, length - start))
            found = StridedBlocks(rows, inputs.mask.key_columns(rows, keys))
        steps.append(found)
        start = found.all_rows.stop
    return steps


def _strided(
    inputs: AttentionInputs, start: int, size: int, strided_logits: int
) -> StridedBlocks | None:
    """As many strided blocks from `start` on as have all of their keys within the sequence."""
    reach = inputs.mask.reach
    if not may_fold(inputs):
        return None
    length, keys = inputs.query.shape[3], inputs.key.shape[2]
    before, after = (-(-count // size) * size for count in (reach.before, reach.after))
    first = start + reach.offset - before
    width = before + size + after
    room = min((length - start) // size, (keys - first - width) // size + 1)
    batch, kv_heads, groups = inputs.query.shape[:3]
    logits = (batch or 1) * kv_heads * groups * size * width
    count = min(room, max(1, strided_logits // logits))
    if first < 0 or count < 2:
        return None
    return StridedBlocks(Span(start, size), Span(first, width), count=count)


def may_fold(inputs: AttentionInputs) -> bool:
    """Whether blocks of a window differ in nothing that a batch cannot hold."""
    mask = inputs.mask
    return mask.reach.width is not None and mask.is_band and differs_in_tokens_only(inputs)


# Forward and backward ---------------------------------------------------------------------


def _forward(inputs: AttentionInputs, steps: list[StridedBlocks]) -> list[Tensor]:
    """The output of each of the strided blocks, (B, K, G, t, Hv)."""
    outputs: list[Tensor] = []
    for blocks in steps:
        # One block after the other: otherwise a graph starts and holds all of them.
        with tf.control_dependencies(outputs[-1:]):
            outputs.append(_blocks_output(inputs, blocks))
    return outputs


def _blocks_output(inputs: AttentionInputs, blocks: StridedBlocks) -> Tensor:
    if blocks.columns.size == 0:
        rows = tf.zeros_like(slice_axis(inputs.query, 3, blocks.rows)[..., :1])  # (B, K, G, t, 1)
        return tf.repeat(
            tf.cast(rows, inputs.accumulator), inputs.value.shape[-1], axis=-1
        )  # (B, K, G, t, Hv)
    output = block_output(*_block(inputs, blocks))
    return output if blocks.count == 1 else unfold_rows(output, blocks)


def _block(inputs: AttentionInputs, blocks: StridedBlocks) -> tuple[AttentionInputs, Block]:
    """Strided blocks as one block: of these inputs, or of inputs with more samples."""
    if blocks.count == 1:
        return inputs, Block(blocks.rows, blocks.columns)
    folded = fold(inputs, blocks)
    return folded, Block(blocks.rows._replace(start=0), Span(0, blocks.columns.size))


def _backward(
    inputs: AttentionInputs, steps: list[StridedBlocks], output: Tensor, upstream: Tensor
) -> Named:
    queries: list[Tensor] = []
    columns = [blocks.all_columns for blocks in reversed(steps) if blocks.columns.size > 0]
    keys, values = ColumnSum(inputs.key, columns), ColumnSum(inputs.value, columns)
    bias = BiasSum(inputs.bias)
    sinks: list[Tensor] = []
    # From the last to the first: then keys behind the current block have their whole sum.
    for blocks in reversed(steps):
        part = [
            slice_axis(x, 3, blocks.all_rows) for x in (output, upstream)
        ]  # (B, K, G, count * t, Hv)
        if blocks.columns.size == 0:
            queries.append(
                tf.zeros_like(slice_axis(inputs.query, 3, blocks.all_rows))
            )  # (B, K, G, t, H)
            bias.skip(blocks.rows)
            continue
        with tf.control_dependencies([*queries[-1:], *keys.latest(), *values.latest()]):
            given, block = _block(inputs, blocks)
            if blocks.count > 1:
                part = [fold_rows(x, blocks) for x in part]  # (B * count, K, G, t, Hv)
            found = block_gradients(given, block, row_sums(*part), part[1])
            found = _unfolded(found, blocks)
            queries.append(found.query)
            keys.add(found.key, blocks.all_columns)
            values.add(found.value, blocks.all_columns)
            sinks += [] if found.sink is None else [found.sink]
            if found.logits is not None:
                bias.add(found.logits, inputs.mask, blocks.rows, blocks.columns)
    named = {
        "query": tf.concat(queries[::-1], axis=3),  # (B, K, G, T, H)
        "key": keys.total(),  # (B, K, S, H)
        "value": values.total(),  # (B, K, S, Hv)
        **{f"bias/{name}": total for name, total in bias.totals().items()},
    }
    return named | ({"sink": _sum(sinks, inputs.sink)} if inputs.sink is not None else {})


def _sum(parts: list[Tensor], like: Tensor) -> Tensor:
    return tf.add_n(parts) if parts else tf.zeros_like(like)  # (K, G)


def _unfolded(found: BlockGradients, blocks: StridedBlocks) -> BlockGradients:
    if blocks.count == 1:
        return found
    return found._replace(
        query=unfold_rows(found.query, blocks),  # (B, K, G, count * t, H)
        key=unfold_spans(found.key, blocks),  # (B, K, all keys, H)
        value=unfold_spans(found.value, blocks),  # (B, K, all keys, Hv)
    )
