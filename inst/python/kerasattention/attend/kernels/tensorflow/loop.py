"""A loop over blocks of queries, on TensorFlow for lengths that a graph does not know.

`fit()` on batches of varying length traces with T and S unknown. The loop has blocks
of a fixed number of queries, the last one padded. Its backward pass is a second loop. One that
TensorFlow derives would keep every block's weights.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from kerasattention.attend.add_at import add_at
from kerasattention.attend.bias import add_block_gradient
from kerasattention.attend.block import Block
from kerasattention.attend.gradient import Named, with_gradient
from kerasattention.attend.inputs import AttentionInputs
from kerasattention.attend.kernels.tensorflow.block import (
    BlockGradients,
    block_gradients,
    block_output,
    row_sums,
)
from kerasattention.attend.kernels.tensorflow.head_groups import of_head_group
from kerasattention.attend.kernels.tensorflow.loop_blocks import (
    BlockLoop,
    choose_block_size,
    is_head_by_head,
)
from kerasattention.attend.kernels.tensorflow.masking import BlockMasking, masking_of
from kerasattention.attend.tensors import (
    Columns,
    Span,
    Tensor,
    is_compiled_by_xla,
    is_static,
    shape_of,
    slice_axis,
    split_columns,
)

# Logits of a head that are computed as one block: the most that the plain kernel is selected for.
MAX_BLOCK_LOGITS = 512 * 512


def looped_attention(
    inputs: AttentionInputs,
    block_size: int | None = None,
    max_block_logits: int = MAX_BLOCK_LOGITS,
) -> Tensor:
    """(B, K, G, T, Hv), whatever is known of the lengths."""
    inputs = inputs.scaled()
    size = block_size or choose_block_size(inputs)
    length, keys = shape_of(inputs.query)[3], shape_of(inputs.key)[2]
    count = (length + size - 1) // size
    missing = count * size - length
    loop = BlockLoop(size, count, is_compiled_by_xla(), is_head_by_head(inputs))
    # Outside of the function with a custom gradient: TensorFlow drops the gradient of a padded
    # input within it.
    inputs = _pad_queries(inputs, missing)
    whole = Block(Span(0, length), Span(0, keys))

    def forward(given: AttentionInputs) -> tuple[Tensor, Tensor]:
        output = _if_short(
            whole,
            max_block_logits,
            lambda: _nothing(given),
            lambda: _pad(block_output(given, whole), 3, missing),
            lambda: _forward(given, loop),
        )
        return output, tf.zeros(())

    def backward(given: AttentionInputs, output: Tensor, _: Tensor, upstream: Tensor) -> Named:
        upstream = tf.cast(upstream, inputs.accumulator)  # (B, K, G, count * size, Hv)
        # Otherwise a graph computes the first blocks beside the forward pass, and holds them.
        with tf.control_dependencies([output, upstream]):
            delta = row_sums(output, upstream)  # (B, K, G, count * size, 1)
        with tf.control_dependencies([delta]):
            return _if_short(
                whole,
                max_block_logits,
                lambda: _no_gradients(given),
                lambda: _backward_as_one(given, whole, delta, upstream),
                lambda: _backward(given, loop, delta, upstream),
            )

    output = with_gradient(forward, backward, inputs)  # (B, K, G, count * size, Hv)
    if is_static(missing) and missing == 0:  # the gradient of a slice is a copy
        return output
    return output[:, :, :, :length]  # (B, K, G, T, Hv)


def _if_short(
    whole: Block,
    max_logits: int,
    empty: Callable[[], Any],
    as_one: Callable[[], Any],
    looped: Callable[[], Any],
) -> Any:
    """Chooses when the graph runs: one block is faster where it stays in cache.

    `empty` is for no queries or no keys, of which there is no softmax. The choice is within a
    function with a custom gradient: XLA compiles no gradient of a choice.
    """
    length, keys = whole.rows.size, whole.columns.size
    if is_static(length, keys):
        return as_one() if length * keys <= max_logits else looped()
    # In 64 bits: lengths whose product exceeds 2**31 must not become one block.
    logits = tf.cast(length, tf.int64) * tf.cast(keys, tf.int64)
    return tf.cond(logits <= max_logits, lambda: tf.cond(logits > 0, as_one, empty), looped)


def _pad_queries(inputs: AttentionInputs, count: Tensor | int) -> AttentionInputs:
    """Pads the queries by `count` rows, so that T is a multiple of the block size.

    The padded rows are dropped from the result.
    """

    def pad(x: Tensor, axis: int) -> Tensor:
        return x if x.shape[axis] == 1 else _pad(x, axis, count)

    return dataclasses.replace(
        inputs,
        query=_pad(inputs.query, 3, count),
        mask=inputs.mask.map_queries(pad),
        bias=None if inputs.bias is None else inputs.bias.map_queries(pad),
    )


def _pad(x: Tensor, axis: int, count: Tensor | int) -> Tensor:
    """Adds `count` zeros behind an axis."""
    paddings = [(0, 0)] * len(x.shape)
    paddings[axis] = (0, count)
    return tf.pad(x, paddings)


# Forward and backward -----------------------------------------------------------------------


def _nothing(inputs: AttentionInputs) -> Tensor:
    """The output of queries without keys: zeros (B, K, G, T, Hv)."""
    return tf.zeros(
        (*shape_of(inputs.query)[:4], inputs.value.shape[-1]), inputs.accumulator
    )  # (B, K, G, T, Hv)


def _forward(inputs: AttentionInputs, loop: BlockLoop) -> Tensor:
    def step(index: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
        block = loop.block(inputs, index)
        masking = _masking_of_all(inputs, block)

        def visit(heads: Span, output: Tensor) -> Tensor:
            part = block_output(of_head_group(inputs, heads), block, masking)  # (B, k, G, t, Hv)
            return add_at(output, {1: heads, 3: block.rows}, part)  # (B, K, G, count * size, Hv)

        return index - 1, _over_heads(inputs, loop, visit, output)

    shape = (*shape_of(inputs.query)[:4], inputs.value.shape[-1])
    _, output = _loop(loop, step, _zeros(shape, inputs.accumulator))
    return output  # (B, K, G, count * size, Hv)


def _masking_of_all(inputs: AttentionInputs, block: Block) -> BlockMasking | None:
    """What groups of heads share; None where a bias differs between them."""
    if inputs.bias is not None:
        return None
    return masking_of(inputs, block.rows, block.columns)


def _backward(inputs: AttentionInputs, loop: BlockLoop, delta: Tensor, upstream: Tensor) -> Named:
    def step(index: Tensor, totals: Named) -> tuple[Tensor, Named]:
        block = loop.block(inputs, index)
        masking = _masking_of_all(inputs, block)
        part = [slice_axis(x, 3, block.rows) for x in (delta, upstream)]  # (B, K, G, t, 1|Hv)

        def visit(heads: Span, totals: Named) -> Named:
            given = of_head_group(inputs, heads)
            of_heads = [slice_axis(x, 1, heads) for x in part]  # (B, k, G, t, 1|Hv)
            found = block_gradients(given, block, of_heads[0], of_heads[1], masking)
            return _add(given, totals, found, block, heads)

        return index - 1, _over_heads(inputs, loop, visit, totals)

    _, totals = _loop(loop, step, _no_gradients(inputs))
    return totals


def _over_heads(
    inputs: AttentionInputs, loop: BlockLoop, visit: Callable[[Span, Any], Any], carry: Any
) -> Any:
    """Calls visit(heads, carry) for all key heads at once, or for each after the other."""
    count = inputs.kv_heads
    if not loop.head_by_head:
        return visit(Span(0, count), carry)
    _, carry = tf.while_loop(
        lambda head, _: head < count,
        lambda head, carry: (head + 1, visit(Span(head, 1), carry)),
        (tf.zeros((), tf.int32), carry),
        parallel_iterations=1,
    )
    return carry


def _backward_as_one(
    inputs: AttentionInputs, whole: Block, delta: Tensor, upstream: Tensor
) -> Named:
    part = [slice_axis(x, 3, whole.rows) for x in (delta, upstream)]  # (B, K, G, T, 1|Hv)
    found = block_gradients(inputs, whole, *part)
    return _add(inputs, _no_gradients(inputs), found, whole, Span(0, inputs.kv_heads))


def _no_gradients(inputs: AttentionInputs) -> Named:
    """Zeros for every tensor that has a gradient."""
    tensors = inputs.tensors()
    names = inputs.differentiable()
    return {name: _zeros(tf.shape(tensors[name]), inputs.accumulator) for name in names}


def _zeros(shape: Any, dtype: str) -> Tensor:
    """As `tf.zeros()`, which a graph keeps as a constant beside the sum that begins with it."""
    return tf.raw_ops.Empty(shape=shape, dtype=dtype, init=True)


def _add(
    inputs: AttentionInputs, totals: Named, found: BlockGradients, block: Block, heads: Span
) -> Named:
    """The gradients so far and those of some heads of one more block."""
    totals = totals | {
        "query": add_at(totals["query"], {1: heads, 3: block.rows}, found.query),  # (B, K, G, T, H)
        "key": _add_columns(totals["key"], found.key, block.columns, heads),  # (B, K, S, H)
        "value": _add_columns(totals["value"], found.value, block.columns, heads),  # (B, K, S, Hv)
    }
    if found.sink is not None:
        totals["sink"] = add_at(totals["sink"], {0: heads}, found.sink)  # (K, G)
    if inputs.bias is None or found.logits is None:
        return totals
    prefix = "bias/"
    of_bias = {
        name.removeprefix(prefix): total
        for name, total in totals.items()
        if name.startswith(prefix)
    }
    added = add_block_gradient(
        inputs.bias,
        of_bias,
        found.logits,
        inputs.mask,
        block.rows,
        block.columns,
        None if heads.size == shape_of(totals["query"])[1] else heads,
    )
    return totals | {prefix + name: total for name, total in added.items()}


def _add_columns(total: Tensor, part: Tensor, columns: Columns, heads: Span) -> Tensor:
    """Adds (B, k, s, X) in its place of (B, K, S, X)."""
    for span, of_span in split_columns(part, 2, columns):
        total = add_at(total, {1: heads, 2: span}, of_span)  # (B, K, S, X)
    return total


def _loop(loop: BlockLoop, step: Callable[..., tuple], *state: Any) -> tuple:
    """From the last block to the first: where a rule is causal the first has the fewest keys.

    TensorFlow's allocator gives no memory back, and uses what a larger block had for a smaller one.
    From the first to the last, a gradient of T = 16,384 took 0.95 GB for 0.46 GB of tensors.
    """
    return tf.while_loop(
        lambda index, *_: index >= 0,
        step,
        (tf.convert_to_tensor(loop.count - 1, tf.int32), *state),
        parallel_iterations=1,
    )
