"""The options that the attention layers share, as one table.

A new option is a row here with its type in `NamedOptions`, and the code that uses it. The row
gives the attribute, the check, the entry in the config and the text of both docstrings. The two
constructors write out only their own arguments and those that Keras takes by position.

It has more than 300 lines because the table stands in one place.
"""

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, Generic, TypedDict, TypeVar, overload

import keras

from kerasattention import checks
from kerasattention.layers.key_value_of import name_of_source
from kerasattention.layers.norms import check_qk_norm
from kerasattention.layers.scaling import ScaleByPosition, check_query_scale, check_scale
from kerasattention.masks.base import Mask, as_mask
from kerasattention.positions.base import Position
from kerasattention.positions.serialization import as_position, position_config

Kept = TypeVar("Kept")


class Option(Generic[Kept]):
    """A row of the table, and the read-only attribute of the layers.

    Args:
        default: The value where the option is not given.
        check: Called with the argument's name and value; returns the value to keep.
        doc: The text of the docstrings.
        to_config: Makes the entry in the config of the value.
        always_in_config: Whether the config has the default too. False for options that
            Keras's layers lack, so that configs go both ways.
        name: The constructor's argument, by default the attribute's name.
    """

    def __init__(
        self,
        default: Any,
        check: Callable[[str, Any], Kept],
        doc: str,
        *,
        to_config: Callable[[Any], Any] | None = None,
        always_in_config: bool = True,
        name: str = "",
    ) -> None:
        self.default, self.check, self.doc = default, check, doc
        self.to_config, self.always_in_config = to_config, always_in_config
        self.name = name
        self.__doc__ = doc

    def __set_name__(self, owner: type, attribute: str) -> None:
        self.name = self.name or attribute
        # The names that Keras's layers use. Sublayers in weight files are named after them.
        self._attribute = f"_{self.name}"

    @overload
    def __get__(self, layer: None, owner: type) -> "Option[Kept]": ...
    @overload
    def __get__(self, layer: object, owner: type) -> Kept: ...
    def __get__(self, layer: object | None, owner: type) -> "Option[Kept] | Kept":
        return self if layer is None else getattr(layer, self._attribute)

    def __set__(self, layer: object, value: Any) -> None:
        raise AttributeError(f"`{self.name}` is set when the layer is made.")

    def keep(self, layer: keras.layers.Layer, value: Any) -> None:
        """Checks a value and stores it in a layer."""
        setattr(layer, self._attribute, self.check(self.name, value))

    def config_entry(self, layer: keras.layers.Layer) -> dict[str, Any]:
        """The entry in a layer's config; empty where the config leaves the option out."""
        value = getattr(layer, self._attribute)
        if not self.always_in_config and (value is None or value == self.default):
            return {}
        return {self.name: value if self.to_config is None else self.to_config(value)}


class _SourceOption(Option[str | None]):
    """The other layer is told that it shares; the name is kept, since a layer owns its parts."""

    def keep(self, layer: keras.layers.Layer, value: Any) -> None:
        setattr(layer, self._attribute, name_of_source(self.name, value, layer))


class _PositionOption(Option[Position | None]):
    """Layers that share a position share it in their copies too, so it needs its owner."""

    def keep(self, layer: keras.layers.Layer, value: Any) -> None:
        setattr(layer, self._attribute, as_position(value, layer))


def _initializer(name: str, value: Any) -> Any:
    return keras.initializers.get(value)


def _regularizer(name: str, value: Any) -> Any:
    return keras.regularizers.get(value)


def _constraint(name: str, value: Any) -> Any:
    return keras.constraints.get(value)


def _gate(name: str, value: Any) -> bool | str:
    """False, True or "head"; "element" is True, which Keras's layers have."""
    if not (isinstance(value, bool) or value in ("element", "head")):
        raise ValueError(
            f'`{name}` must be True, False, "element" or "head". Received: {name}={value!r}'
        )
    return True if value == "element" else value


class SharedOptions:
    """The table: one row for each option, in the order of the constructors' arguments."""

    dropout = Option(0.0, checks.rate, "Rate at which attention weights are dropped in training.")
    use_bias = Option(True, checks.flag, "Whether the projections have biases.")
    flash_attention = Option(
        None,
        checks.optional_flag,
        "None selects a kernel; False forces the plain kernel; True demands a kernel that never "
        "holds (T, S) scores, or an error.",
    )
    kernel_initializer = Option(
        "glorot_uniform",
        _initializer,
        "Initializer of the projections' kernels.",
        to_config=keras.initializers.serialize,
    )
    bias_initializer = Option(
        "zeros",
        _initializer,
        "Initializer of their biases.",
        to_config=keras.initializers.serialize,
    )
    kernel_regularizer = Option(
        None,
        _regularizer,
        "Regularizer of the kernels.",
        to_config=keras.regularizers.serialize,
    )
    bias_regularizer = Option(
        None,
        _regularizer,
        "Regularizer of the biases.",
        to_config=keras.regularizers.serialize,
    )
    # Not an attribute `activity_regularizer`: Keras would add that to this layer's output too.
    projection_activity_regularizer = Option(
        None,
        _regularizer,
        "Regularizer of the projections' outputs.",
        to_config=keras.regularizers.serialize,
        name="activity_regularizer",
    )
    kernel_constraint = Option(
        None,
        _constraint,
        "Constraint of the kernels.",
        to_config=keras.constraints.serialize,
    )
    bias_constraint = Option(
        None,
        _constraint,
        "Constraint of the biases.",
        to_config=keras.constraints.serialize,
    )
    seed = Option(None, checks.seed, "Integer seed of the dropout.")
    sliding_window = Option(
        None,
        checks.optional_positive_integer,
        "A query attends keys closer than this many positions (Beltagy et al. 2020).",
    )
    use_gate = Option(
        False,
        _gate,
        "Whether a sigmoid gate from the query multiplies each head's result (Qiu et al. 2025, "
        'https://arxiv.org/abs/2505.06708): False; True or "element", a gate for each of its '
        'numbers; "head", one for the whole head.',
    )
    position = _PositionOption(
        None,
        lambda name, value: value,
        "None, or a position such as `RotaryPosition()`.",
        to_config=position_config,
        always_in_config=False,
    )
    qk_norm = Option(
        False,
        check_qk_norm,
        "Norm of queries and keys with a learned scale (Henry et al. 2020, "
        'https://arxiv.org/abs/2010.04245): False; True or "rms" divides each head by its root '
        'mean square, "layer" takes its mean away first, "l2" divides it by its Euclidean norm; '
        'or a dictionary with such a `type` and some of `over` ("head", or "width": one norm of '
        "all heads together), `epsilon` (1e-6), `after_position` (False: before the position is "
        "applied), `offset` (0; 1 multiplies by 1 + scale), `learned` (True), `per_head` (False: "
        'one scale for all heads) and `bias` (False; for "layer").',
        # Keras replaces a dictionary in an attribute by another object.
        to_config=lambda value: dict(value) if isinstance(value, dict) else value,
        always_in_config=False,
    )
    logit_soft_cap = Option(
        None,
        checks.optional_positive_number,
        "None, or c to make the logits c * tanh(logits / c).",
        always_in_config=False,
    )
    attention_sink = Option(
        False,
        checks.flag,
        "Whether each query head has a learned logit in the softmax's denominator (Xiao et al. "
        "2023, https://arxiv.org/abs/2309.17453).",
        always_in_config=False,
    )
    value_norm = Option(
        False,
        checks.flag,
        "Whether each value head is divided by its root mean square, without a learned scale "
        "(Gemma 4).",
        always_in_config=False,
    )
    use_key_as_value = Option(
        False,
        checks.flag,
        "Whether the projected keys are the values too, before their norm and position are applied "
        "(Gemma 4): the layer has no projection of values, and `value_norm` is of the keys. A call "
        "takes no `key` other than `value`.",
        always_in_config=False,
    )
    scale = Option(
        None,
        check_scale,
        'Factor of the logits: None for 1 / sqrt(H), a number, or "learned": softplus(w) / log(2) '
        "times that, with a weight w for each of the H features of a head, at first 0 (TimesFM, "
        "Das et al. 2024, https://arxiv.org/abs/2310.10688).",
        always_in_config=False,
    )
    query_scale = Option(
        None,
        check_query_scale,
        "None, or a `ScaleByPosition()`: a factor of the queries that grows with their position.",
        to_config=ScaleByPosition.get_config,
        always_in_config=False,
    )
    key_value_of = _SourceOption(
        None,
        lambda name, value: value,
        "None, or another attention layer of the model that was called before on the same tokens: "
        "its keys and values are used, with its norm and position, and this layer has no "
        "projections of them (Gemma 3n; Sun et al. 2024, https://arxiv.org/abs/2405.05254). A "
        "cache holds them once. The layers need the same heads of keys and values.",
        always_in_config=False,
    )
    use_causal_mask = Option(
        False,
        checks.flag,
        "Whether calls are causal where they do not say.",
        always_in_config=False,
    )
    mask = Option(
        None,
        as_mask,
        "None, or a rule of positions such as `CausalMask() & (WindowMask(256) | PrefixMask(4))` "
        "that holds beside all other masks. Keys that it masks out are not computed.",
        to_config=keras.saving.serialize_keras_object,
        always_in_config=False,
    )


OPTIONS: dict[str, Option[Any]] = {
    option.name: option for option in vars(SharedOptions).values() if isinstance(option, Option)
}


class NamedOptions(TypedDict, total=False):
    """The types of the arguments that both constructors take by name only."""

    sliding_window: int | None
    use_gate: bool | str
    position: Position | None
    qk_norm: bool | str | dict[str, Any]
    logit_soft_cap: float | None
    attention_sink: bool
    value_norm: bool
    use_key_as_value: bool
    scale: float | str | None
    query_scale: ScaleByPosition | dict[str, Any] | None
    key_value_of: Any
    use_causal_mask: bool
    mask: Mask | None
    # Of each layer of Keras.
    name: str | None
    trainable: bool
    dtype: Any
    autocast: bool


def options_among(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a constructor writes out, from all its arguments."""
    return {name: value for name, value in arguments.items() if name in OPTIONS}


def full_signature(
    constructor: Callable[..., None], leaving_out: Collection[str] = ()
) -> inspect.Signature:
    """The signature of a constructor, with the options of the table that it takes by name."""
    *own, rest = inspect.signature(constructor).parameters.values()
    written_out = {parameter.name for parameter in own}
    types = NamedOptions.__annotations__
    named = [
        rest.replace(
            name=name,
            kind=inspect.Parameter.KEYWORD_ONLY,
            default=option.default,
            annotation=types[name],
        )
        for name, option in OPTIONS.items()
        if name not in written_out and name not in leaving_out
    ]
    rest = rest.replace(name="kwargs", annotation=Any)
    return inspect.Signature([*own, *named, rest], return_annotation=None)
