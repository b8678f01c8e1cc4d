"""Norms of projected heads: their options, and the sublayer that computes them.

Shapes (B, ..., heads, size): queries (B, T, N, H), keys (B, S, K, H), values (B, S, K, Hv).
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from kerasattention import checks
from kerasattention.attend.tensors import Tensor, accumulator_of, rms_normalize

NORM_TYPES = ("rms", "layer", "l2")
NORM_AXES = ("head", "width")


@dataclasses.dataclass(frozen=True)
class NormOptions:
    """The entries of the option `qk_norm`, with their defaults.

    Attributes:
        type: "rms" divides by the root mean square, "layer" takes the mean away before that,
            "l2" divides by the Euclidean norm.
        over: What one statistic is of: "head", each head, or "width", all heads of a token.
        epsilon: Added to the mean of squares; for "l2" to their sum.
        after_position: Whether it follows the position's rotation.
        offset: Added to the learned scale.
        learned: Whether there is a learned scale.
        per_head: Whether each head has a scale; over the width each has.
        bias: Whether a learned bias is added, for "layer".
    """

    type: str = "rms"
    over: str = "head"
    epsilon: float = 1e-6
    after_position: bool = False
    offset: float = 0.0
    learned: bool = True
    per_head: bool = False
    bias: bool = False

    @property
    def of_each_head(self) -> bool:
        """Whether scale and bias have an axis of heads."""
        return self.per_head or self.over == "width"

    def to_config(self) -> bool | str | dict[str, Any]:
        """The shortest value of `qk_norm` that stands for it."""
        defaults = NormOptions()
        entries = {
            name: value
            for name, value in dataclasses.asdict(self).items()
            if value != getattr(defaults, name)
        }
        if not entries:
            return True
        return self.type if set(entries) == {"type"} else {"type": self.type, **entries}


def check_qk_norm(name: str, value: Any) -> bool | str | dict[str, Any]:
    """False, True, the name of a type, or a dictionary, in its shortest form."""
    return False if value is False else norm_options(name, value).to_config()


def norm_options(name: str, value: Any) -> NormOptions:
    """The entries of a value that is not False, checked."""
    if value is True:
        return NormOptions()
    given: Any = {"type": value} if isinstance(value, str) else value
    known = [field.name for field in dataclasses.fields(NormOptions)]
    kinds = ", ".join(f'"{kind}"' for kind in NORM_TYPES)
    if not isinstance(given, Mapping):
        raise ValueError(
            f"`{name}` must be True, False, one of {kinds}, or a dictionary with some of "
            f"{known}. Received: {name}={value!r}"
        )
    for entry in given:
        if entry not in known:
            raise ValueError(f"`{name}` takes {known}. Received: {entry!r} in {name}={value!r}")
    _check_entries(name, given, kinds)
    options = NormOptions(**given)
    if options.bias and options.type != "layer":
        raise ValueError(f'`bias` of `{name}` is for the type "layer". Received: {name}={value!r}')
    if not options.learned and (options.offset or options.per_head or options.bias):
        raise ValueError(
            f"`offset`, `per_head` and `bias` of `{name}` are about a learned scale, which "
            f"`learned=False` leaves out. Received: {name}={value!r}"
        )
    return dataclasses.replace(
        options, epsilon=float(options.epsilon), offset=float(options.offset)
    )


def _check_entries(name: str, given: Mapping[str, Any], kinds: str) -> None:
    for entry, value in given.items():
        holds, rule = _rule(entry, value, kinds)
        if not holds:
            raise ValueError(f"`{entry}` of `{name}` must be {rule}. Received: {entry}={value!r}")


def _rule(entry: str, value: Any, kinds: str) -> tuple[bool, str]:
    """Whether the value of an entry is one, and what it must be."""
    number: Any = value if checks.is_number(value) else float("nan")
    if entry == "type":
        return value in NORM_TYPES, f"one of {kinds}"
    if entry == "over":
        return value in NORM_AXES, '"head" or "width"'
    if entry == "epsilon":
        # A smaller one would be 0 in float32, and the norm of zeros NaN.
        return 1e-30 <= number <= 1, "a number of at least 1e-30 and at most 1"
    if entry == "offset":
        return -1e6 < number < 1e6, "a number"
    return isinstance(value, bool), "True or False"


class HeadNorm(keras.layers.Layer):
    """Normalises heads (B, ..., heads, size), in float32 or better.

    Args:
        options: Its options.
        heads: The number of heads.
        size: The size of each.
        **kwargs: `name`, `dtype` of a Keras layer.
    """

    def __init__(self, options: NormOptions, heads: int, size: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True  # as the projections
        self.options = options
        self._shape = (heads, size) if options.of_each_head else (size,)
        self.build()

    def build(self, input_shape: Any = None) -> None:
        """Makes the learned scale and bias: (size), or (heads, size) of each head."""
        if self.built:
            return
        options = self.options
        self.scale = self.bias = None
        if options.learned:
            self.scale = self.add_weight(
                name="scale",
                shape=self._shape,
                initializer=keras.initializers.Constant(1.0 - options.offset),
                autocast=False,
            )
        if options.bias:
            self.bias = self.add_weight(
                name="bias", shape=self._shape, initializer="zeros", autocast=False
            )
        self.built = True

    def call(self, x: Tensor) -> Tensor:
        wide = ops.cast(x, accumulator_of(self.compute_dtype))  # (B, ..., heads, size)
        unit = _unit(wide, self.options)  # (B, ..., heads, size)
        if self.scale is not None:
            scale = ops.cast(self.scale, wide.dtype) + self.options.offset  # (heads|1, size)
            unit = unit * scale  # (B, ..., heads, size)
        if self.bias is not None:
            # Not `ops.add()`, which on TensorFlow takes a bias of (heads, 1) for one of channels.
            unit = unit + ops.cast(self.bias, wide.dtype)  # (B, ..., heads, size)
        return ops.cast(unit, self.compute_dtype)  # (B, ..., heads, size)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def quantize(self, *args: Any, **kwargs: Any) -> None:
        """Leaves the scale as it is, where a whole model is quantised: it is in no product."""


def _unit(x: Tensor, options: NormOptions) -> Tensor:
    """The normalised heads before the learned scale, in the dtype of x."""
    axes = (-2, -1) if options.over == "width" else (-1,)
    count = x.shape[-1] * (x.shape[-2] if options.over == "width" else 1)
    if options.type == "layer":
        x = x - ops.sum(x, axis=axes, keepdims=True) / count  # (B, ..., heads, size)
    squares = ops.sum(x * x, axis=axes, keepdims=True)  # (B, ..., heads|1, 1)
    if options.type != "l2":
        squares = squares / count  # (B, ..., heads|1, 1)
    return x / ops.sqrt(squares + options.epsilon)  # (B, ..., heads, size)


def unlearned_rms(x: Tensor) -> Tensor:
    """Values (B, ..., K, Hv), each head divided by its root mean square."""
    wide = ops.cast(x, accumulator_of(x.dtype))  # (B, ..., K, Hv)
    return ops.cast(_unit(wide, NormOptions()), x.dtype)  # (B, ..., K, Hv)


def make_norm(
    options: NormOptions, heads: int, size: int, name: str, policy: Any
) -> keras.layers.Layer:
    """The sublayer of some options: Keras's own where it computes the same."""
    plain = dataclasses.replace(options, epsilon=1e-6, after_position=False)
    if plain != NormOptions():
        return HeadNorm(options, heads, size, name=name, dtype=policy)
    norm = keras.layers.RMSNormalization(axis=-1, epsilon=options.epsilon, name=name, dtype=policy)
    norm.supports_masking = True  # as the projections
    norm.build((None, None, None, size))
    return norm


def normalize(norm: keras.layers.Layer, heads: Tensor) -> Tensor:
    """Normalised heads, in float64 if that is the norm's dtype: Keras computes in float32."""
    if isinstance(norm, HeadNorm) or norm.compute_dtype != "float64":
        return norm(heads)  # (B, ..., heads, size)
    return rms_normalize(
        ops.cast(heads, "float64"), norm.scale, norm.epsilon
    )  # (B, ..., heads, size)


def normalize_lean(norm: keras.layers.Layer, heads: Tensor) -> Tensor:
    """`normalize()`, of which a gradient on JAX keeps only the heads.

    Otherwise it keeps four tensors of their size: XLA spreads the scale and the roots over all of
    them. Other backends keep one more.
    """
    if keras.backend.backend() != "jax":
        return normalize(norm, heads)
    import jax

    return jax.checkpoint(functools.partial(normalize, norm))(heads)
