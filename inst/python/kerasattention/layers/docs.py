"""The shared part of the layers' signatures and docstrings, written once."""

import textwrap
from collections.abc import Collection
from typing import Any, TypeVar

from kerasattention.layers.options import OPTIONS, full_signature

Layer = TypeVar("Layer", bound=type)

_CALL = """\
**kwargs: `name`, `trainable`, `dtype` of a Keras layer.

Call arguments:
    query: (B, T, D).
    value: (B, S, D'), by default `query`: self-attention.
    key: (B, S, D''), by default `value`.
    query_mask: (B, T); True marks a token, False padding. Combined with the
        Keras mask that `query` carries; likewise `value_mask`, `key_mask` (B, S).
    attention_mask: True / 1 means attend: (T, S), (B, T, S), (B, 1, T, S) or
        (B, N, T, S).
    return_attention_scores: Whether to return the weights as well.
    training: Whether dropout is active.
    use_causal_mask: Whether a query sees only positions up to its own.
    attention_bias: Added to the logits; shapes as of `attention_mask`.
    segment_ids: (B, T) integers: tokens see their own segment only; 0 is padding.
    positions: (B, T) integers, or real numbers such as times; by default 0..T-1
        or the positions after a cache. Float64 is kept where the backend has it.
        (B, T, axes) for a `position` of several axes; masks then compare the
        order of the tokens. They have no gradient.
    bidirectional: (B, T) integers: tokens with the same number above 0 see each
        other whatever the causal rule, the window and `mask` say, as the image
        tokens of Gemma 3 do. Padding, segments and masks given as arrays still
        hold. Number the spans of a sequence in order: then keys that no query of
        a block sees are not computed, except by torch on a GPU and by XLA on
        TensorFlow. Memory stays linear in T.
    key_value_from: The output of the layer `key_value_of` in the same call. In a
        graph it is found where that layer is called once.

Returns:
    (B, T, D); for a query that sees no key, whose attention is zero, the output's
    bias. With `return_attention_scores` also (B, N, T, S).

Raises:
    ValueError: An argument or shape that does not fit; the message has both.
"""


_CROSS = """\
    value: (B, S, D'), by default `query`: self-attention.
    key: (B, S, D''), by default `value`.
"""
_SHARED = """\
    key_value_from: The output of the layer `key_value_of` in the same call. In a
        graph it is found where that layer is called once.
"""
SELF_ATTENTION = _CALL.replace(_CROSS, "    value, key: Not of another sequence.\n").replace(
    _SHARED, ""
)


def show_shared_options(
    layer: Layer, leaving_out: Collection[str] = (), call: str = _CALL
) -> Layer:
    """Adds the shared options to a class's docstring and to the signature that help shows.

    The docstring ends with the arguments of that class only.

    Args:
        layer: The class.
        leaving_out: The options that it does not have.
        call: The text on the arguments of a call.
    """
    constructor: Any = layer.__init__
    constructor.__signature__ = full_signature(constructor, leaving_out)
    if layer.__doc__ is not None:  # None under `python -OO`
        options = "".join(
            f"{_entry(name, option.doc)}\n"
            for name, option in OPTIONS.items()
            if name not in leaving_out
        )
        kwargs, rest = call.split("\n", 1)
        shared = textwrap.indent(options + kwargs, " " * 8) + "\n" + textwrap.indent(rest, " " * 4)
        layer.__doc__ = f"{layer.__doc__.rstrip()}\n{shared}    "
    return layer


def _entry(name: str, text: str) -> str:
    return textwrap.fill(
        f"{name}: {text}", width=80, subsequent_indent=" " * 4, break_on_hyphens=False
    )
