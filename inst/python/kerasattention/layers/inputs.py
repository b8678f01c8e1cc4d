"""The arguments of one call: gathered and checked once, for `call` and `compute_output_spec`."""

import dataclasses
import functools
from typing import Any

from keras import ops

from kerasattention import checks
from kerasattention._keras import get_keras_mask
from kerasattention.attend.mask import AttentionMask
from kerasattention.attend.tensors import Tensor, is_static
from kerasattention.layers import shapes
from kerasattention.layers.axes import AxisFold
from kerasattention.layers.shapes import CallShapes
from kerasattention.masks.base import Mask
from kerasattention.masks.join import rule_fields

INPUTS = ("query", "value", "key")
# Arguments with a number for each token.
MASKS = ("query_mask", "value_mask", "key_mask", "attention_mask")
NUMBERS_OF_TOKENS = ("segment_ids", "positions", "bidirectional")


@dataclasses.dataclass
class LayerCall:
    """The call arguments in their order, defaults of `value` and `key` filled in.

    Attributes:
        self_attention: Whether queries, keys and values come from one tensor.
        query_padding: (B', T), the query's Keras mask and `query_mask` as one; False is padding.
        key_padding: (B', S), likewise those of value and key.
    """

    query: Tensor  # (B, ..., D)
    value: Tensor = None  # (B, ..., D')
    key: Tensor = None  # (B, ..., D'')
    query_mask: Tensor | None = None
    value_mask: Tensor | None = None
    key_mask: Tensor | None = None
    attention_mask: Tensor | None = None
    return_attention_scores: bool = False
    training: bool | None = None
    use_causal_mask: bool | None = None
    attention_bias: Tensor | None = None
    segment_ids: Tensor | None = None
    positions: Tensor | None = None  # (B, T) or (B, T, axes)
    bidirectional: Tensor | None = None
    key_value_from: Any = None

    def __post_init__(self) -> None:
        if self.value is None and self.key is not None:
            raise ValueError("`key` needs a `value` as well: keys say where, values what.")
        self.value = self.query if self.value is None else self.value
        self.key = self.value if self.key is None else self.key
        self.self_attention = self.value is self.query and self.key is self.query
        self.query_padding: Tensor | None = None
        self.key_padding: Tensor | None = None

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.query, self.value, self.key

    @property
    def masks(self) -> tuple[Tensor | None, ...]:
        """The padding masks given as arguments."""
        return self.query_mask, self.value_mask, self.key_mask

    def check(self, fold: AxisFold, heads: int, causal: bool, axes: int = 1) -> None:
        """Refuses arguments that do not fit each other, and fills in the layer's `causal`.

        The shapes of query, value and key were checked before. `axes` is the number of axes of the
        layer's position.
        """
        for name, x in zip(INPUTS, self.tensors, strict=True):
            checks.floats(name, x)
        self._check_masks(fold, heads, axes)
        if self.use_causal_mask is None:
            self.use_causal_mask = causal
        else:
            self.use_causal_mask = checks.switch("use_causal_mask", self.use_causal_mask)

    def _check_masks(self, fold: AxisFold, heads: int, axes: int) -> None:
        given = {
            "attention_mask": self.attention_mask,
            "attention_bias": self.attention_bias,
            "segment_ids": self.segment_ids,
            "positions": self.positions,
            "bidirectional": self.bidirectional,
        }
        for name, mask, x in zip(INPUTS, self.masks, self.tensors, strict=True):
            # One that Keras attached to the tensor has the tensor's shape.
            given[f"{name}_mask"] = None if mask is get_keras_mask(x) else mask
        if all(x is None for x in given.values()):
            return
        received = {name: shapes.shape_of(name, x) for name, x in given.items()}
        inputs = (tuple(x.shape) for x in self.tensors)
        shapes.check_call(CallShapes(*inputs, **received), fold, heads, axes)
        checks.bias(self.attention_bias)
        checks.positions(self.positions)
        for name, verb in (("segment_ids", "are"), ("bidirectional", "is")):
            checks.integers(name, getattr(self, name))
            if getattr(self, name) is not None and not self.self_attention:
                raise ValueError(
                    f"`{name}` {verb} for self-attention: queries and keys share the numbers. "
                    "Use `attention_mask` for cross-attention. Received: "
                    f"query {tuple(self.query.shape)}, value {tuple(self.value.shape)}, "
                    f"key {tuple(self.key.shape)}"
                )

    @property
    def _compared_positions(self) -> Tensor | None:
        """The positions (B, T) that rules compare; None: the order of the tokens.

        Those of several axes are not compared (`coordinates.py`).
        """
        if self.positions is None or len(self.positions.shape) == 3:
            return None
        return self.positions

    def check_lengths(self, fold: AxisFold, rule: Mask) -> None:
        """Refuses positions that the layer's rule says nothing about, where they are known."""
        lengths = fold.length(self.query), fold.length(self.key)
        if self._compared_positions is None and is_static(*lengths):
            rule.check_lengths(*lengths)

    def folded_mask(
        self, fold: AxisFold, window: int | None, rule: Mask | None = None
    ) -> AttentionMask:
        """All masks of the call and the layer's window and rule, their axes folded."""
        self.query_padding = padding_of(fold, self.query, self.query_mask)  # (B', T)
        self.key_padding = self._padding_of_keys(fold)  # (B', S)
        positions = fold.fold_tokens(self._compared_positions, self.query)  # (B', T)
        segments = fold.fold_tokens(self.segment_ids, self.query)  # (B', T)
        spans = fold.fold_tokens(self.bidirectional, self.query)  # (B', T)
        return AttentionMask(
            **rule_fields(rule, bool(self.use_causal_mask), window),
            query_positions=positions,
            key_positions=positions if self.self_attention else None,
            query_mask=self.query_padding,
            key_mask=self.key_padding,
            query_segments=segments,
            key_segments=segments,
            query_bidirectional=spans,
            key_bidirectional=spans,
            mask=fold.fold_scores(
                as_boolean(self.attention_mask), self.query, self.key
            ),  # (B'|1, N|1, T|1, S|1)
        )

    def _padding_of_keys(self, fold: AxisFold) -> Tensor | None:
        """(B', S), the queries' padding itself where nothing but the input's mask is given."""
        attached = get_keras_mask(self.query)
        if self.self_attention and all(mask is None or mask is attached for mask in self.masks):
            return self.query_padding
        if self.key is self.value:
            return padding_of(fold, self.key, self.value_mask, self.key_mask)
        return _joined(
            padding_of(fold, self.value, self.value_mask), padding_of(fold, self.key, self.key_mask)
        )


def padding_of(fold: AxisFold, x: Tensor, *masks: Tensor | None) -> Tensor | None:
    """The mask that an input carries and those given with it, as one (B', T)."""
    attached = get_keras_mask(x)
    folded = [fold.fold_padding(attached, x, attached=True)]  # (B', T)
    folded += [
        fold.fold_padding(mask, x, attached=False)
        for mask in masks
        if mask is not attached  # Keras passes it as an argument too
    ]  # (B', T)
    return _joined(*folded)


def _joined(*masks: Tensor | None) -> Tensor | None:
    """The logical and of the distinct masks that are given, (B', T); None without any."""
    given: list[Tensor] = []
    for mask in masks:
        if mask is not None and not any(mask is other for other in given):
            given.append(mask)
    if not given:
        return None
    return functools.reduce(ops.logical_and, [ops.cast(mask, "bool") for mask in given])  # (B', T)


def as_boolean(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else ops.cast(mask, "bool")


def arguments_by_name(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, however they were given."""
    return dict(zip(_NAMES, args, strict=False)) | kwargs


_NAMES = tuple(field.name for field in dataclasses.fields(LayerCall))
