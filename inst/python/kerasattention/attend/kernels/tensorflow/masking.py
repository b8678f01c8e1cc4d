"""Applies masks on TensorFlow without an extra pass over the logits.

To add a mask takes nearly as long as a softmax. Where positions are indices, the causal rule
and the window mask whole diagonals out: those are set in place, which costs only what is set.
Padding is one more feature of the keys, which the product adds to the logits.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from kerasattention.attend.bias import BlockBias, SumOfBiases, TensorBias
from kerasattention.attend.inputs import AttentionInputs
from kerasattention.attend.mask import AttentionMask
from kerasattention.attend.tensors import (
    Columns,
    Span,
    Tensor,
    group_heads,
    is_compiled_by_xla,
    is_static,
    one_span,
    shape_of,
    stack_groups,
    unstack_groups,
)

# Far below any logit, and finite, so that a fully masked row has a softmax.
MASKED_OUT = -1e30

Diagonals = tuple[int, int]


class BlockMasking(NamedTuple):
    """How the masks and the bias of a block are applied.

    Attributes:
        feature: None or (B, 1, s, 1), added to all logits of a key within the product.
        addend: None or a tensor added to the logits, broadcast to (B, K, G, t, s).
        diagonals: First and last diagonals to be set, 0 being that of the first query and key.
        value: Logit of masked-out keys: minus infinity where a bias may be as low as any number.
    """

    feature: Tensor | None
    addend: Tensor | None
    diagonals: list[Diagonals]
    value: float

    @property
    def is_empty(self) -> bool:
        return self.feature is None and self.addend is None and not self.diagonals


def masking_of(inputs: AttentionInputs, rows: Span, columns: Columns) -> BlockMasking:
    """Chooses how the masks and the bias of a block are applied."""
    mask = inputs.mask
    value = float("-inf") if has_infinities(inputs) else MASKED_OUT
    diagonals: list[Diagonals] = []
    added = mask
    if isinstance(columns, Span) and _are_diagonals(mask, rows, columns):
        diagonals = masked_diagonals(mask, rows, columns)
        added = mask.without_position_rules()
    feature = None
    real = mask.real_keys(columns)  # (B, s)
    if real is not None and _takes_features(inputs):
        feature = _as_addend(inputs, real[:, None, :, None], value)  # (B, 1, s, 1)
        added = added.without_padding()
    parts = []
    visible = added.block_mask(rows, columns)  # (B|1, N|1, t|1, s|1)
    if visible is not None:
        parts.append(group_heads(_as_addend(inputs, visible, value), inputs.kv_heads))
    if inputs.bias is not None:
        bias = tf.cast(
            inputs.bias.block(mask, rows, columns), inputs.accumulator
        )  # (B|1, N|1, t|1, s|1)
        parts.append(group_heads(bias, inputs.kv_heads))
    return BlockMasking(
        feature, sum(parts[1:], start=parts[0]) if parts else None, diagonals, value
    )


def product(query: Tensor, key: Tensor, masking: BlockMasking) -> Tensor:
    """(B, K, G * t, s) of (B, K, G * t, H) and (B, K, s, H), with the logits of padding added."""
    if masking.feature is None:
        return tf.matmul(query, key, transpose_b=True)  # (B, K, G * t, s)
    column = tf.broadcast_to(masking.feature, tf.shape(key[..., :1]))  # (B, K, s, 1)
    query = tf.concat([query, tf.ones_like(query[..., :1])], axis=-1)  # (B, K, G * t, H + 1)
    return tf.matmul(query, tf.concat([key, column], axis=-1), transpose_b=True)  # (B, K, G * t, s)


def apply_masking(logits: Tensor, masking: BlockMasking, groups: int) -> Tensor:
    """(B, K, G * t, s): applies all but the padding that `product()` has applied."""
    if masking.addend is None and not masking.diagonals:
        return logits
    logits = unstack_groups(logits, groups)  # (B, K, G, t, s)
    if masking.addend is not None:
        logits = logits + masking.addend  # (B, K, G, t, s)
    return stack_groups(
        _set_diagonals(logits, masking.diagonals, masking.value)
    )  # (B, K, G * t, s)


def share_of_visible(
    inputs: AttentionInputs, rows: Span, columns: Columns, masking: BlockMasking, query: Tensor
) -> Tensor:
    """(B, K, G * t, 1) of inputs without bias: 0 for a query without keys, else 1.

    From the masks, which are mostly one for all heads. A maximum of the logits would be another
    pass over them, and hold them beside the weights.
    """
    if masking.addend is None and is_static(*rows, columns.size):
        visible = _count_keys(inputs, rows, columns) > 0  # (B|1, 1, 1, t, 1)
    else:
        addend = _whole_addend(masking, rows, columns)  # (B|1, K|1, G|1, t|1, s)
        visible = (
            tf.reduce_max(addend, axis=-1, keepdims=True) > 0.1 * MASKED_OUT
        )  # (B|1, K|1, G|1, t|1, 1)
    of_rows = unstack_groups(query[..., :1], inputs.groups)  # (B, K, G, t, 1)
    visible = tf.broadcast_to(
        tf.cast(visible, inputs.accumulator), tf.shape(of_rows)
    )  # (B, K, G, t, 1)
    return stack_groups(visible)  # (B, K, G * t, 1)


def _whole_addend(masking: BlockMasking, rows: Span, columns: Columns) -> Tensor:
    """All of the masking as one addend (B|1, K|1, G|1, t|1, s)."""
    parts = [] if masking.addend is None else [masking.addend]
    if masking.feature is not None:
        parts.append(tf.transpose(masking.feature, (0, 1, 3, 2))[:, :, None])  # (B, 1, 1, 1, s)
    addend = sum(parts[1:], start=parts[0])  # (B|1, K|1, G|1, t|1, s)
    if not masking.diagonals:
        return addend
    shape = (*tf.unstack(tf.shape(addend)[:3]), rows.size, columns.size)
    return _set_diagonals(
        tf.broadcast_to(addend, shape), masking.diagonals, MASKED_OUT
    )  # (B|1, K|1, G|1, t, s)


def has_infinities(inputs: AttentionInputs) -> bool:
    """Whether a bias may mask keys out by minus infinity."""
    return inputs.bias is not None and _may_hold_infinity(inputs.bias)


# Causal rule and window as diagonals -----------------------------------------------------


def masked_diagonals(mask: AttentionMask, rows: Span, columns: Span) -> list[Diagonals]:
    """The diagonals that the rules of positions mask out, where positions are indices."""
    if not mask.masks_positions(rows, columns):
        return []
    lowest, highest = 1 - rows.size, columns.size - 1
    reach = mask.reach
    own = rows.start + reach.offset - columns.start  # that of each query's own position
    found = []
    if reach.after is not None:
        found.append((own + reach.after + 1, highest))
    if reach.before is not None:
        found.append((lowest, own - reach.before - 1))
    limited = [(max(low, lowest), min(high, highest)) for low, high in found]
    return [(low, high) for low, high in limited if low <= high]


def _are_diagonals(mask: AttentionMask, rows: Span, columns: Span) -> bool:
    # XLA adds a mask within its own passes, and sets diagonals by gathering.
    return (
        mask.is_band
        and mask.positions_are_indices
        and is_static(*rows, *columns)
        and not is_compiled_by_xla()
    )


def _set_diagonals(logits: Tensor, diagonals: list[Diagonals], value: float) -> Tensor:
    """Puts a value on diagonals of (..., t, s): in place where no other operation reads them."""
    length, keys = logits.shape[-2:]
    for low, high in diagonals:
        longest = min(length + min(high, 0), keys - max(low, 0))
        count = () if low == high else (high - low + 1,)
        # Outside the order of the blocks, so that TensorFlow merges equal constants.
        with tf.control_dependencies(None):
            shape = (*shape_of(logits)[:-2], *count, longest)
            diagonal = tf.fill(shape, tf.constant(value, logits.dtype))
            if not logits.shape.is_fully_defined():
                # Where sizes are unknown, TensorFlow's shape inference takes several diagonals
                # for one, and refuses their rank. It checks none that it does not know.
                diagonal = tf.raw_ops.PlaceholderWithDefault(input=diagonal, shape=None)
        logits = tf.raw_ops.MatrixSetDiagV3(input=logits, diagonal=diagonal, k=[low, high])
    return logits


# Padding ---------------------------------------------------------------------------------


def _takes_features(inputs: AttentionInputs) -> bool:
    """Whether a product may mask keys out: its sum with a bias of minus infinity is not finite,
    and a cap comes after the product but before the mask."""
    return inputs.soft_cap is None and inputs.bias is None and not is_compiled_by_xla()


def _count_keys(inputs: AttentionInputs, rows: Span, columns: Columns) -> Tensor:
    """(B|1, 1, 1, t, 1): how many keys each query sees by position and padding."""
    mask, reach = inputs.mask, inputs.mask.reach
    query = np.arange(rows.size) + rows.start  # (t)
    first, last = np.zeros(rows.size, int), np.full(rows.size, columns.size)  # (t)
    masks = isinstance(columns, Span) and mask.masks_positions(rows, columns)
    if masks and reach.before is not None:
        first = reach.first_key(query) - one_span(columns).start  # (t)
    if masks and reach.after is not None:
        last = reach.stop_key(query) - one_span(columns).start  # (t)
    first, last = (np.clip(x, 0, columns.size) for x in (first, last))  # (t)
    real = mask.real_keys(columns)  # (B, s)
    if real is None:
        return tf.constant(
            np.maximum(last - first, 0)[None, None, None, :, None]
        )  # (1, 1, 1, t, 1)
    real = tf.cast(real, tf.int32)  # (B, s)
    before = tf.pad(tf.cumsum(real, axis=1), [(0, 0), (1, 0)])  # (B, s + 1)
    count = tf.gather(before, np.maximum(first, last), axis=1) - tf.gather(
        before, first, axis=1
    )  # (B, t)
    return count[:, None, None, :, None]  # (B, 1, 1, t, 1)


def _as_addend(inputs: AttentionInputs, visible: Tensor, value: float) -> Tensor:
    # A bias may be as low as float32 allows, and must not pass for a mask.
    return tf.cast(tf.where(visible, 0.0, value), inputs.accumulator)


def _may_hold_infinity(bias: BlockBias) -> bool:
    """Whether a bias may mask keys out by minus infinity; those of positions never do."""
    if isinstance(bias, SumOfBiases):
        return any(_may_hold_infinity(part) for part in bias.biases)
    return isinstance(bias, TensorBias)
