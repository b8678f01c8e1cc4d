"""The projections of an attention layer: how they are made, and how a call applies them.

It has more than 300 lines because one class has all that concerns the sublayers.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from kerasattention import checks
from kerasattention.attend.tensors import Tensor
from kerasattention.layers.axes import AxisFold, output_equation, projection_equation
from kerasattention.layers.heads import Heads
from kerasattention.layers.inputs import LayerCall
from kerasattention.layers.key_value_of import shared_heads
from kerasattention.layers.nonfinite import Projector
from kerasattention.layers.norms import (
    NormOptions,
    make_norm,
    norm_options,
    normalize,
    unlearned_rms,
)
from kerasattention.layers.options import SharedOptions
from kerasattention.layers.projection import projection
from kerasattention.layers.scaling import LEARNED
from kerasattention.layers.shapes import Shape
from kerasattention.layers.sharding import head_axes

PROJECTIONS = ("query", "key", "value", "gate", "output")
# The sublayers' names, in the order in which they draw seeds of the layer's initializers.
_SUBLAYERS = ("query", "key", "gate", "value", "attention_output")
_LATENTS = ("query_latent", "latent")


class ProjectingLayer(SharedOptions, keras.layers.Layer):
    """A layer with options and heads, which projects tokens to heads and heads to tokens.

    Sublayers, weights and attributes carry the names that Keras's layers give them, so that
    weight files go both ways.
    """

    _heads: Heads
    _fold: AxisFold
    _output_shape: tuple[int, ...] | None

    @property
    def heads(self) -> Heads:
        """Numbers and sizes of heads."""
        return self._heads

    @property
    def fold(self) -> AxisFold:
        """The axes of its inputs that it attends over."""
        return self._fold

    def projection(self, name: str) -> keras.layers.EinsumDense | None:
        """The projection "query", "key", "value", "gate" or "output"; None if there is none.

        A method, not properties: Keras names the weights in files after the first
        public attribute that holds a sublayer, and its own layers have none for
        some of them.
        """
        return getattr(self, f"_{name}_dense", None)

    def projections(self) -> dict[str, keras.layers.EinsumDense]:
        """All projections by name."""
        found = {name: self.projection(name) for name in PROJECTIONS}
        return {name: dense for name, dense in found.items() if dense is not None}

    def vectors(self) -> dict[str, Any]:
        """The learned vectors beside the projections: of norms, sinks, a scale."""
        named = {"sink": self.sink} if self.attention_sink else {}
        for name in ("query_norm", "key_norm") if self.qk_norm else ():
            norm = getattr(self, f"_{name}", None)  # none of keys of another layer
            if norm is not None:
                named |= {name: norm.scale, f"{name}_bias": getattr(norm, "bias", None)}
        if self.scale == LEARNED:
            named["scale"] = self.per_dim_scale
        return {name: vector for name, vector in named.items() if vector is not None}

    @property
    def norm_options(self) -> NormOptions | None:
        """What `qk_norm` stands for; None without a norm."""
        return norm_options("qk_norm", self.qk_norm) if self.qk_norm else None

    @property
    def gate_size(self) -> int:
        """Gates of each head: one, or one for each of its Hv results."""
        return 1 if self.use_gate == "head" else self._heads.value_size

    # Making --------------------------------------------------------------------

    def _make_sublayers(self, query_shape: Shape, value_shape: Shape, key_shape: Shape) -> None:
        heads = self._heads
        self._query_dense = self._projection("query", query_shape, heads.query, heads.size)
        computes = self.key_value_of is None
        if computes:
            self._key_dense = self._projection("key", key_shape, heads.key_value, heads.size)
        if self.use_gate:
            self._gate_dense = self._projection(
                "gate", query_shape, heads.query, self.gate_size, activation="sigmoid"
            )
        if computes and not self.use_key_as_value:
            self._value_dense = self._projection(
                "value", value_shape, heads.key_value, heads.value_size
            )
        self._dropout_layer = keras.layers.Dropout(
            rate=self.dropout, dtype=self._policy_of("dropout"), seed=self.seed
        )
        self._output_dense = self._output_projection(query_shape)
        options = self.norm_options
        if options is not None:
            counts = {"query_norm": heads.query}
            if computes:
                counts["key_norm"] = heads.key_value
            for name, count in counts.items():
                norm = make_norm(options, count, heads.size, name, self._policy_of(name))
                setattr(self, f"_{name}", norm)

    def _check_kernels(self, query: Shape, value: Shape, key: Shape) -> None:
        """Refuses sizes that no memory holds, before the first kernel is made."""
        heads = self._heads
        checks.kernel("query", (query[-1], heads.query, heads.size))
        if not self.use_key_as_value:
            checks.kernel("value", (value[-1], heads.key_value, heads.value_size))
        checks.kernel("key", (key[-1], heads.key_value, heads.size))
        self._check_gate(query)
        output = self._output_shape or (query[-1],)
        checks.kernel("attention_output", (heads.query, heads.value_size, *output))

    def _check_gate(self, query: Shape) -> None:
        if self.use_gate:
            checks.kernel("gate", (query[-1], self._heads.query, self.gate_size))

    def _projection(
        self,
        name: str,
        shape: Shape,
        heads: int,
        size: int,
        activation: Any = None,
        use_bias: bool | None = None,
    ) -> keras.layers.EinsumDense:
        use_bias = self.use_bias if use_bias is None else use_bias
        shape = _with_spare_axis(shape, use_bias, (heads, size))
        equation = projection_equation(len(shape))
        dense = projection(
            equation,
            output_shape=(None,) * (len(shape) - 2) + (heads, size),
            bias_axes=equation[-2:] if use_bias else None,
            activation=activation,
            name=name,
            **self._sublayer_options(name),
        )
        # Masks pass through it untouched; without this Keras warns at each call.
        dense.supports_masking = True
        dense.build(shape)
        return dense

    def _output_projection(self, query_shape: Shape) -> keras.layers.EinsumDense:
        features: tuple[Any, ...] = self._output_shape or (query_shape[-1],)
        shape = _with_spare_axis(query_shape, self.use_bias, features)
        equation, made = output_equation(len(shape), len(features))
        dense = projection(
            equation,
            output_shape=(None,) * (len(shape) - 2) + features,
            bias_axes=made if self.use_bias else None,
            name="attention_output",
            **self._sublayer_options("attention_output"),
        )
        dense.build((*shape[:-1], self._heads.query, self._heads.value_size))
        return dense

    def _sublayer_options(self, name: str) -> dict[str, Any]:
        return {
            "kernel_initializer": _own_initializer(self.kernel_initializer, name, "kernel"),
            "bias_initializer": _own_initializer(self.bias_initializer, name, "bias"),
            "kernel_regularizer": self.kernel_regularizer,
            "bias_regularizer": self.bias_regularizer,
            "activity_regularizer": self.projection_activity_regularizer,
            "kernel_constraint": self.kernel_constraint,
            "bias_constraint": self.bias_constraint,
            "dtype": self._policy_of(name),
        }

    # Dtype policies ------------------------------------------------------------

    def _policy_of(self, name: str) -> keras.dtype_policies.DTypePolicy:
        """The dtype policy of one sublayer.

        Keras's projections cannot save themselves quantised when theirs is a map.
        """
        if isinstance(self.dtype_policy, keras.dtype_policies.DTypePolicyMap):
            return self.dtype_policy[f"{self.path}/{name}"]
        return self.dtype_policy

    def _policy_of_sublayers(self) -> keras.dtype_policies.DTypePolicyMap | None:
        """The dtype policies that quantisation gave the projections, by path.

        Keras quantises sublayers without telling this layer; a reloaded one must
        build them quantised, or their weights do not fit.
        """
        if not self.built:
            return None
        policies = {
            dense.path: dense.dtype_policy
            for dense in self.projections().values()
            if dense.dtype_policy != self._policy_of(dense.name)
        }
        if not policies:
            return None
        default = self.dtype_policy
        if isinstance(default, keras.dtype_policies.DTypePolicyMap):
            policies = {**default, **policies}
            default = default.default_policy
        return keras.dtype_policies.DTypePolicyMap(default_policy=default, policy_map=policies)

    # Applying ------------------------------------------------------------------

    def _query_heads(self, call: LayerCall, projector: Projector) -> Tensor:
        def heads(query: Tensor) -> Tensor:
            heads = apply(self._query_dense, query)  # (B, ..., N, H)
            return normalize(self._query_norm, heads) if self._norms_first else heads

        real = functools.partial(self._unfolded, call.query_padding, call.query)
        return self._fold.fold(projector.project(heads, call.query, real))  # (B, T, N, H)

    def _key_value_heads(self, call: LayerCall, projector: Projector) -> tuple[Tensor, Tensor]:
        if self.key_value_of is not None:
            source = shared_heads(self, call.key_value_from, call.query)
            return source.key, source.value  # (B, S, K, H), (B, S, K, Hv)

        def heads(key: Tensor) -> Tensor:
            return self._normed_keys(apply(self._key_dense, key))  # (B, ..., K, H)

        def values(value: Tensor) -> Tensor:
            return self._normed_values(apply(self._value_dense, value))  # (B, ..., K, Hv)

        real = functools.partial(self._unfolded, call.key_padding, call.key)
        if self.use_key_as_value:
            key, value = self._keys_twice(call, projector, real)  # (B, ..., K, H)
        else:
            key = projector.project(heads, call.key, real)  # (B, ..., K, H)
            value = projector.project(values, call.value, real)  # (B, ..., K, Hv)
        return self._fold.fold(key), self._fold.fold(value)  # (B, S, K, H), (B, S, K, Hv)

    def _keys_twice(
        self, call: LayerCall, projector: Projector, real: Callable[[], Tensor | None]
    ) -> tuple[Tensor, Tensor]:
        """Keys, and the same as values: projected once, each with its norm."""
        heads = projector.project(
            functools.partial(apply, self._key_dense), call.key, real
        )  # (B, ..., K, H)
        options = self.norm_options
        # As in `_norm_positioned()`.
        features = 2 if options is not None and options.over == "width" else 1
        key = projector.project(self._normed_keys, heads, features=features)  # (B, ..., K, H)
        return key, projector.project(self._normed_values, heads)  # (B, ..., K, H)

    def _normed_keys(self, heads: Tensor) -> Tensor:
        return normalize(self._key_norm, heads) if self._norms_first else heads  # (B, ..., K, H)

    def _normed_values(self, heads: Tensor) -> Tensor:
        return unlearned_rms(heads) if self.value_norm else heads  # (B, ..., K, Hv)

    @property
    def _norms_first(self) -> bool:
        """Whether queries and keys are normalised before their position is applied."""
        options = self.norm_options
        return options is not None and not options.after_position

    def _unfolded(self, mask: Tensor | None, like: Tensor) -> Tensor | None:
        return None if mask is None else self._fold.unfold_padding(mask, like)

    def _output(self, call: LayerCall, projector: Projector, heads: Tensor) -> Tensor:
        """The output projection of heads (B, T, N, Hv), gated where the layer has a gate."""

        def output(heads: Tensor) -> Tensor:
            if self.use_gate:
                # The heads of a query that is not finite are NaN, or zero if it sees no key.
                gate = apply(self._gate_dense, projector.clean(call.query))  # (B, ..., N, Hv|1)
                heads, gate = in_one_dtype(heads, gate)
                heads = heads * gate  # (B, ..., N, Hv)
            return apply(self._output_dense, heads)  # (B, ..., D)

        heads = self._fold.unfold(heads, call.query)  # (B, ..., N, Hv)
        split = bool(head_axes(self).query)
        return projector.project(output, heads, features=2, features_are_split=split)  # (B, ..., D)


def _with_spare_axis(shape: Shape, use_bias: bool, made: tuple[int, ...]) -> Shape:
    """The shape of a projection's input, with an axis of size 1 after the batch if it needs one.

    On TensorFlow `keras.ops.add()` takes a bias (N, 1) for one of channels, and adds it along
    axis 1 of (B, T, N, 1) where T equals N (Keras 3.15.1). With the axis this cannot happen.
    """
    is_taken_for_channels = use_bias and made[-1] == 1 and math.prod(made) > 1
    return (shape[0], 1, *shape[1:]) if is_taken_for_channels else shape


def apply(dense: keras.layers.EinsumDense, x: Tensor) -> Tensor:
    """The projection of a tensor, which the spare axis is added to if the projection has it."""
    if dense.equation.index(",") == len(x.shape):
        return dense(x)
    return ops.squeeze(dense(ops.expand_dims(x, 1)), 1)


def in_one_dtype(*tensors: Tensor) -> list[Tensor]:
    """The tensors in the dtype that holds them all: a policy map may give each its own."""
    dtypes = [keras.backend.standardize_dtype(tensor.dtype) for tensor in tensors]
    if len(set(dtypes)) == 1:
        return list(tensors)
    # Keras's own rule gives float32 for float64 and another.
    dtype = "float64" if "float64" in dtypes else keras.backend.result_type(*dtypes)
    return [ops.cast(tensor, dtype) for tensor in tensors]


def _own_initializer(initializer: Any, sublayer: str, kind: str) -> Any:
    """A copy for one weight: sharing a seed would give all of them the same values."""
    if not isinstance(initializer, keras.initializers.Initializer):
        return initializer
    config = initializer.get_config()
    if isinstance(config.get("seed"), int):
        # The first keeps it, and so the kernel that Keras's layer would have.
        sets = (_SUBLAYERS, _LATENTS)
        weight = [(name, k) for names in sets for k in ("kernel", "bias") for name in names]
        config["seed"] += weight.index((sublayer, kind))
    elif config.get("seed") is not None:
        return initializer  # a generator, which draws on
    return initializer.__class__.from_config(config)
