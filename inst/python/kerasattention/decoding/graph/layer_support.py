"""Which layers can be decoded, as far as that is known without a trial.

It has more than 300 lines because every reason to refuse a layer stands here.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras
from keras import tree

from kerasattention._keras import flatten_layers, get_keras_mask, is_keras_operation
from kerasattention.attend.mask import AttentionMask
from kerasattention.decoding.cache.spec import CacheSpec
from kerasattention.decoding.graph.program import CastTo, Instruction, Program, Slot, WithMask
from kerasattention.layers.attention import AttentionLayer
from kerasattention.layers.sharding import key_head_axes
from kerasattention.masks.join import rule_fields

layers = keras.layers

ELEMENTWISE_LAYERS = (
    layers.Activation,
    layers.ActivityRegularization,
    layers.Add,
    layers.AlphaDropout,
    layers.Average,
    layers.Dropout,
    layers.ELU,
    layers.GaussianDropout,
    layers.GaussianNoise,
    layers.Identity,
    layers.LeakyReLU,
    layers.Masking,
    layers.Maximum,
    layers.Minimum,
    layers.Multiply,
    layers.ReLU,
    layers.Rescaling,
    layers.SpatialDropout1D,
    layers.Subtract,
)
# Their result may have another rank than their input.
FEATURE_LAYERS = (
    layers.Dense,
    layers.Embedding,
    *([layers.ReversibleEmbedding] if hasattr(layers, "ReversibleEmbedding") else []),
)
NORM_LAYERS = (
    layers.BatchNormalization,
    layers.LayerNormalization,
    layers.RMSNormalization,
)
# Of `keras.ops`, by name: their classes are not public.
ELEMENTWISE_OPERATIONS = {
    *("Add", "Subtract", "Multiply", "Divide", "TrueDivide", "Maximum", "Minimum", "Power"),
    *("Absolute", "Negative", "Square", "Sqrt", "Rsqrt", "Exp", "Log", "Tanh", "Sigmoid"),
    *("Relu", "Relu6", "Silu", "Gelu", "Elu", "Selu", "Softplus", "Cast", "Clip", "Cos", "Sin"),
    *("Equal", "NotEqual", "Greater", "GreaterEqual", "Less", "LessEqual"),
    *("LogicalAnd", "LogicalOr", "LogicalNot"),
}

# Each of them acts on features or single numbers; a user's function may do anything.
ACTIVATIONS = tuple(x for x in vars(keras.activations).values() if callable(x))

RECURRENT = "it is recurrent, and its state is not in the key/value cache"
NOT_CAUSAL = (
    "its attention is not causal, so later tokens change what was computed for earlier ones; "
    "call it with `use_causal_mask=True`"
)
UNKNOWN = "it is called with `{}`, which is not known for tokens to come"
# Ways out that are named in the message.
HINTS = {
    "positions": "; make it an input of the model, which is given for the prompt and each step, or "
    "leave it out, and tokens are counted from 0",
    "segment_ids": "; make it an input of the model, which is then given for the prompt",
    "bidirectional": "; make it an input of the model, which is then given for the prompt",
}
# Arguments of attention that may be an input of the model: see `prompt_arguments.py`.
PROMPT_ARGUMENTS = ("segment_ids", "bidirectional", "positions")
MIXING = "its result at a token depends on other tokens"
REASONS: tuple[tuple[tuple[type, ...], str], ...] = (
    ((layers.RNN, layers.Bidirectional, layers.ConvLSTM1D), RECURRENT),
    (
        (layers.Conv1D, layers.SeparableConv1D, layers.DepthwiseConv1D, layers.Conv1DTranspose),
        "it convolves over time",
    ),
    (
        (
            layers.GlobalAveragePooling1D,
            layers.GlobalMaxPooling1D,
            layers.AveragePooling1D,
            layers.MaxPooling1D,
        ),
        "it pools over time",
    ),
    ((layers.Flatten, layers.RepeatVector), "it changes the time axis"),
    ((layers.Permute,), "it moves the time axis"),
    ((layers.GroupNormalization,), "it normalises over time"),
    (
        (layers.Attention, layers.AdditiveAttention),
        "it is an attention without a cache; use layers of kerasattention",
    ),
)


def refusal(name: str, reason: str) -> ValueError:
    return ValueError(f"Layer '{name}' cannot be decoded token by token: {reason}.")


def refuse_known(instruction: Instruction) -> None:
    """Refuses layers that are known not to work."""
    operation = instruction.operation
    for kind, reason in REASONS:
        if not isinstance(operation, kind):
            continue
        size = getattr(operation, "kernel_size", None) or getattr(operation, "pool_size", None)
        if size is not None and tuple(size) == (1,):
            continue
        raise refusal(instruction.name, f"{reason} ({type(operation).__name__})")


def refuse_shape(instruction: Instruction, length: int | None) -> None:
    """Refuses a layer whose result has no time axis, or another."""
    for spec in instruction.specs:
        if len(spec.shape) < 2 or spec.shape[1] != length:
            raise refusal(
                instruction.name,
                f"its result of shape {tuple(spec.shape)} has not the tokens' time axis second "
                f"({type(instruction.operation).__name__})",
            )


def attention_spec(
    instruction: Instruction,
    moving: set[int],
    program: Program,
    known: Mapping[int, tuple[int, CacheSpec]],
) -> CacheSpec:
    """The caches of a call of an attention layer.

    Args:
        known: The calls before it, by the slots of their outputs: index and caches.
    """
    layer: AttentionLayer = instruction.operation
    arguments = bound_arguments(instruction)
    query, value = arguments["query"], arguments.get("value")
    key = arguments.get("key")
    value = query if value is None else value
    key = value if key is None else key
    sources = {x.index in moving for x in (value, key)}
    if query.index not in moving or len(sources) > 1:
        raise refusal(instruction.name, "its query, key and value are mixed of tokens and others")
    if arguments.get("return_attention_scores"):
        raise refusal(instruction.name, "it is called with `return_attention_scores`")
    if len(program.specs[query.index].shape) != 3:
        raise refusal(instruction.name, "its inputs have more axes than (batch, time, features)")
    cross = not sources.pop()
    mask = _position_mask(layer, arguments)
    if not cross:
        _check_self_attention(instruction, arguments, mask, program)
    masks = [arguments.get("value_mask"), arguments.get("key_mask")]
    masks += [get_keras_mask(program.specs[x.index]) for x in (value, key)]
    sizes, positions = layer.cached_sizes, _compared_positions(arguments, program)
    spec = CacheSpec(
        layer=layer.name,
        kv_heads=sizes.heads,
        key_size=sizes.key,
        value_size=sizes.value,
        dtype=layer.compute_dtype,
        # A window of positions may hold more tokens than it is wide.
        window=mask.reach.window if positions is None else None,
        cross=cross,
        masked=any(mask is not None for mask in masks)
        or any(x.index in program.masked for x in (value, key)),
        segmented=arguments.get("segment_ids") is not None,
        position_dtype=None if positions is None else program.specs[positions.index].dtype,
        mask=layer.mask,
        lookahead=mask.lookahead or 0,
        least_step=0 if mask.is_exact else 1,
        key_axes=key_head_axes(layer),
        longest=longest_cached(layer),
    )
    if layer.key_value_of is None:
        return spec
    return _with_shared(instruction, spec, known.get(arguments["key_value_from"].index))


def _with_shared(
    instruction: Instruction, spec: CacheSpec, source: tuple[int, CacheSpec] | None
) -> CacheSpec:
    """The caches of a layer that uses the keys and values of another call, `source`."""
    if source is None:
        raise refusal(instruction.name, "the layer whose keys it uses has no cache in this model")
    index, other = source
    if spec.window != other.window:
        raise refusal(
            instruction.name,
            f"its window, {spec.window}, is not that of layer '{other.layer}', whose keys and "
            f"values it uses, {other.window}: a cache has one length",
        )
    if (spec.position_dtype, spec.segmented) != (other.position_dtype, other.segmented):
        raise refusal(
            instruction.name,
            f"its `positions` and `segment_ids` are not those of layer '{other.layer}', whose keys "
            "and values it uses",
        )
    # The kept mask of the other layer says both what is padding and what is of the last segment.
    if spec.masked != other.masked and (spec.masked or spec.segmented):
        ours, theirs = ("a", "none") if spec.masked else ("no", "one")
        raise refusal(
            instruction.name,
            f"its keys have {ours} padding mask, and those of layer '{other.layer}', which it "
            f"uses, have {theirs}",
        )
    root = index if other.shares_with is None else other.shares_with
    return dataclasses.replace(spec, shares_with=root)


def longest_cached(layer: AttentionLayer) -> int | None:
    """The longest sequence in which cached keys keep their rotation; None for any length."""
    return None if layer.position is None else layer.position.longest_cached


def _position_mask(layer: AttentionLayer, arguments: dict[str, Any]) -> AttentionMask:
    """The rules of positions of a call."""
    causal = arguments.get("use_causal_mask")
    if causal is None:
        causal = layer.use_causal_mask
    return AttentionMask(**rule_fields(layer.mask, bool(causal), layer.sliding_window))


def _check_self_attention(
    instruction: Instruction, arguments: dict[str, Any], mask: AttentionMask, program: Program
) -> None:
    for name in ("attention_mask", "attention_bias", *PROMPT_ARGUMENTS):
        given = arguments.get(name)
        if given is None:
            continue
        is_input = isinstance(given, Slot) and program.input_behind(given.index) is not None
        if name not in PROMPT_ARGUMENTS or not is_input:
            raise refusal(instruction.name, unknown(name))
        if name == "positions":
            _check_positions(instruction)
    if mask.lookahead is None:
        raise refusal(instruction.name, NOT_CAUSAL)


def _compared_positions(arguments: dict[str, Any], program: Program) -> Slot | None:
    """The positions of a call that rules compare: not those of several axes."""
    given = arguments.get("positions")
    is_compared = isinstance(given, Slot) and len(program.specs[given.index].shape) == 2
    return given if is_compared else None


def _check_positions(instruction: Instruction) -> None:
    """Refuses given positions that a cache cannot keep."""
    position = instruction.operation.position
    if position is not None and position.compares_axes:
        raise refusal(
            instruction.name,
            "its `position` compares `positions` of several axes, which no cache keeps",
        )
    if longest_cached(instruction.operation) is not None:
        raise refusal(
            instruction.name,
            "the `scaling` of its `position` depends on the length, and its `positions` are given",
        )


def unknown(argument: str) -> str:
    """The reason to refuse a call with an argument that later tokens would need."""
    return UNKNOWN.format(argument) + HINTS.get(argument, "")


def bound_arguments(instruction: Instruction) -> dict[str, Any]:
    """The arguments of a call of an attention layer by name."""
    names = ("query", "value", "key", "query_mask", "value_mask", "key_mask", "attention_mask")
    names += ("return_attention_scores", "training", "use_causal_mask", "attention_bias")
    names += ("segment_ids", "positions", "bidirectional", "key_value_from")
    return dict(zip(names, instruction.args, strict=False)) | instruction.kwargs


def acts_per_position(instruction: Instruction, moving: set[int], program: Program) -> bool:
    """Whether it is certain that a token's result depends on no other token."""
    operation = instruction.operation
    if isinstance(operation, WithMask):
        return all(x in moving for x in instruction.inputs)
    if not _broadcasts_over_time(instruction, moving, program):
        return False
    if not _is_unchanged(operation):
        return False
    kind = type(operation)
    if isinstance(operation, CastTo) or kind in ELEMENTWISE_LAYERS or kind in FEATURE_LAYERS:
        return True
    if kind in NORM_LAYERS:
        rank = len(instruction.specs[0].shape)
        axis = operation.axis
        axes = {axis} if isinstance(axis, int) else set(axis)
        return axes <= {-1, rank - 1}
    if kind is layers.Concatenate:
        return operation.axis in (-1, len(instruction.specs[0].shape) - 1)
    return is_keras_operation(operation) and kind.__name__ in ELEMENTWISE_OPERATIONS


def _is_unchanged(operation: Any) -> bool:
    """Whether a layer has neither an activation nor a `call()` of the user."""
    activation = getattr(operation, "activation", None)
    known = activation is None or any(activation is x for x in ACTIVATIONS)
    return known and "call" not in vars(operation)


def is_our_attention(operation: Any) -> bool:
    """Whether it is an attention layer of this package, without a class of a user in it."""
    if not isinstance(operation, AttentionLayer) or "call" in vars(operation):
        return False
    parts = (operation, operation.position, operation.query_scale)
    return all(type(x).__module__.split(".")[0] == _PACKAGE for x in parts if x is not None)


_PACKAGE = __name__.split(".")[0]


def _broadcasts_over_time(instruction: Instruction, moving: set[int], program: Program) -> bool:
    """Whether no input but the tokens has a time axis."""
    rank = len(instruction.specs[0].shape)
    for x in tree.flatten((instruction.args, instruction.kwargs)):
        if isinstance(x, Slot) and x.index in moving:
            if len(program.specs[x.index].shape) < 2:
                return False
            if len(program.specs[x.index].shape) != rank and type(instruction.operation) not in (
                FEATURE_LAYERS
            ):
                return False
            continue
        shape = tuple(program.specs[x.index].shape) if isinstance(x, Slot) else _shape(x)
        if len(shape) >= rank - 1 and shape[1 - rank] != 1:
            return False
    return True


def _shape(x: Any) -> tuple[int, ...]:
    shape = getattr(x, "shape", ())
    return tuple(shape) if shape is not None else ()


def vocabulary(program: Program, slot: int) -> int | None:
    """The number of ids of the embeddings that read a slot; None where none does."""
    sizes = []
    for instruction in program.instructions:
        if slot not in instruction.inputs:
            continue
        if isinstance(instruction.operation, CastTo):
            sizes.append(vocabulary(program, instruction.outputs[0]))
        elif isinstance(instruction.operation, layers.Embedding):
            sizes.append(instruction.operation.input_dim)
    return min((size for size in sizes if size is not None), default=None)


def holds_attention(operation: Any) -> bool:
    """Whether one of our attention layers is somewhere inside."""
    if not isinstance(operation, layers.Layer):
        return False
    return any(isinstance(layer, AttentionLayer) for layer in flatten_layers(operation))


def ends_in_softmax(instruction: Instruction) -> bool:
    """Whether the model gives probabilities rather than logits."""
    operation = instruction.operation
    activation = getattr(operation, "activation", None)
    return isinstance(operation, layers.Softmax) or activation is keras.activations.softmax
