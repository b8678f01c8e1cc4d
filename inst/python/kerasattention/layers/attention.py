"""The layer behind both public classes: project, position, hand over, project back."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from kerasattention import checks
from kerasattention._keras import flatten_layers, get_keras_mask, set_keras_mask
from kerasattention.attend.api import attend, make_problem
from kerasattention.attend.bias import TensorBias, join_biases
from kerasattention.attend.dropout import draw_seed
from kerasattention.attend.mask import Visibility
from kerasattention.attend.tensors import Span, Tensor, rms_normalize
from kerasattention.attend.weights import attention_weights
from kerasattention.layers import shapes
from kerasattention.layers.axes import (
    AxisFold,
    output_equation,
    projection_equation,
    resolve_axes,
)
from kerasattention.layers.context import current_context, is_observed
from kerasattention.layers.nonfinite import AS_THEY_ARE, Projector, may_mask_out
from kerasattention.layers.recompute import RecomputedCall, seed_of_call, sublayers_scope
from kerasattention.layers.shapes import CallShapes, Shape
from kerasattention.positions.base import Position
from kerasattention.positions.serialization import as_position, position_config


@dataclasses.dataclass(frozen=True)
class Heads:
    """Numbers and sizes of heads: N, K, H and Hv."""

    query: int
    key_value: int
    size: int
    value_size: int


@dataclasses.dataclass
class Call:
    """The inputs of one call, defaults filled in."""

    query: Tensor
    value: Tensor
    key: Tensor
    self_attention: bool
    projector: Projector = AS_THEY_ARE
    query_mask: Tensor | None = None  # (B', T)
    key_mask: Tensor | None = None  # (B', S)


class AttentionLayer(keras.layers.Layer):
    """Multi-head attention with grouped key/value heads over any axes.

    Sublayers, weights and attributes carry the names that Keras's layers give
    them, so that weight files go both ways.
    """

    def __init__(
        self,
        heads: Heads,
        /,
        *,
        dropout: float,
        use_bias: bool,
        output_shape: tuple[int, ...] | None,
        attention_axes: tuple[int, ...] | None,
        flash_attention: bool | None,
        kernel_initializer: Any,
        bias_initializer: Any,
        kernel_regularizer: Any,
        bias_regularizer: Any,
        activity_regularizer: Any,
        kernel_constraint: Any,
        bias_constraint: Any,
        seed: int | None,
        sliding_window: int | None,
        use_gate: bool,
        position: Position | None,
        qk_norm: bool,
        logit_soft_cap: float | None,
        attention_sink: bool,
        use_causal_mask: bool,
        **kwargs: Any,
    ) -> None:
        checks.width(heads.query, max(heads.size, heads.value_size))
        super().__init__(**kwargs)
        self.supports_masking = True
        self._heads = heads
        self._dropout = checks.rate("dropout", dropout)
        self._use_bias = checks.flag("use_bias", use_bias)
        self._output_shape = output_shape
        self._attention_axes = attention_axes
        self._flash_attention = checks.optional_flag("flash_attention", flash_attention)
        self._kernel_initializer = keras.initializers.get(kernel_initializer)
        self._bias_initializer = keras.initializers.get(bias_initializer)
        self._kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self._bias_regularizer = keras.regularizers.get(bias_regularizer)
        # Not `activity_regularizer`: Keras would count it for this layer's output too.
        self._activity_regularizer = keras.regularizers.get(activity_regularizer)
        self._kernel_constraint = keras.constraints.get(kernel_constraint)
        self._bias_constraint = keras.constraints.get(bias_constraint)
        self.seed = checks.seed(seed)
        self._sliding_window = checks.optional_positive_integer("sliding_window", sliding_window)
        self._use_gate = checks.flag("use_gate", use_gate)
        self._position = as_position(position, self)
        self._qk_norm = checks.flag("qk_norm", qk_norm)
        self._logit_soft_cap = checks.optional_positive_number("logit_soft_cap", logit_soft_cap)
        self._attention_sink = checks.flag("attention_sink", attention_sink)
        self._use_causal_mask = checks.flag("use_causal_mask", use_causal_mask)

    # What the layer is made of -------------------------------------------------

    @property
    def heads(self) -> Heads:
        """Numbers and sizes of heads."""
        return self._heads

    @property
    def dropout(self) -> float:
        return self._dropout

    @property
    def use_bias(self) -> bool:
        return self._use_bias

    @property
    def use_gate(self) -> bool:
        return self._use_gate

    @property
    def sliding_window(self) -> int | None:
        return self._sliding_window

    @property
    def flash_attention(self) -> bool | None:
        return self._flash_attention

    @property
    def position(self) -> Position | None:
        return self._position

    @property
    def qk_norm(self) -> bool:
        return self._qk_norm

    @property
    def logit_soft_cap(self) -> float | None:
        return self._logit_soft_cap

    @property
    def attention_sink(self) -> bool:
        return self._attention_sink

    @property
    def use_causal_mask(self) -> bool:
        """Whether calls are causal where they do not say."""
        return self._use_causal_mask

    @property
    def kernel_initializer(self) -> Any:
        return self._kernel_initializer

    @property
    def bias_initializer(self) -> Any:
        return self._bias_initializer

    @property
    def kernel_regularizer(self) -> Any:
        return self._kernel_regularizer

    @property
    def bias_regularizer(self) -> Any:
        return self._bias_regularizer

    @property
    def kernel_constraint(self) -> Any:
        return self._kernel_constraint

    @property
    def bias_constraint(self) -> Any:
        return self._bias_constraint

    def projection(self, name: str) -> keras.layers.EinsumDense | None:
        """The projection "query", "key", "value", "gate" or "output"; None if there is none.

        A method, not properties: Keras names the weights in files after the first
        public attribute that holds a sublayer, and its own layers have none for
        some of them.
        """
        return getattr(self, f"_{name}_dense", None)

    def vectors(self) -> dict[str, Any]:
        """The learned vectors beside the projections: scales of norms, sinks."""
        named = {"sink": self.sink} if self._attention_sink else {}
        if self._qk_norm:
            named |= {"query_norm": self._query_norm.scale, "key_norm": self._key_norm.scale}
        return named

    # Changing heads ------------------------------------------------------------

    def with_heads(self, query: Sequence[int], key_value: Sequence[int]) -> "AttentionLayer":
        """An unbuilt layer of this one's options with some of its heads."""
        config = {**self.get_config(), **self._head_config(len(query), len(key_value))}
        if self._position is not None:
            position = self._position.keep_heads(query, self._heads.query)
            if position is not self._position:
                config["position"] = position
            else:  # built again, for fewer heads
                config["position"].pop("build_config", None)
        return type(self).from_config(config)

    def _head_config(self, query: int, key_value: int) -> dict[str, int]:
        """The entries of the config that count heads."""
        raise NotImplementedError

    def head_axis(self, variable: Any) -> tuple[int | None, bool]:
        """Which axis of a weight counts heads (None: none), and whether those are query heads.

        Raises:
            ValueError: A projection that is quantised or has LoRA's factors.
        """
        of_query = {"query": True, "gate": True, "attention_output": True}
        for dense in self._projections():
            if dense.quantization_mode is not None or getattr(dense, "lora_enabled", False):
                raise ValueError(
                    "The heads of a quantised layer or one with LoRA stay as they are. "
                    "Change them before `quantize()` and before LoRA is enabled. "
                    f"Received: {self.name!r}"
                )
            is_output = dense is self._output_dense
            if dense.bias is variable:
                return (None if is_output else 0), of_query.get(dense.name, False)
            if dense.kernel is variable:
                return (0 if is_output else 1), of_query.get(dense.name, False)
        if variable is getattr(self, "sink", None):
            return 0, True
        axis = None if self._position is None else self._position.head_axis(variable)
        return axis, axis is not None

    # Building ------------------------------------------------------------------

    def build(
        self,
        query_shape: Shape,
        value_shape: Shape | None = None,
        key_shape: Shape | None = None,
    ) -> None:
        """Makes the projections for inputs (B, ..., D)."""
        query_shape, value_shape, key_shape = self._check_inputs(
            query_shape, value_shape, key_shape
        )
        rank, heads = len(query_shape), self._heads
        self._fold = AxisFold(resolve_axes(self._attention_axes, rank), rank)
        self.feature_dim = query_shape[-1]
        self._feature_sizes = tuple(s[-1] for s in (query_shape, value_shape, key_shape))
        self._check_kernels()
        with sublayers_scope(self):
            self._make_sublayers(query_shape, value_shape, key_shape)
        if self._attention_sink:
            self.sink = self.add_weight(
                name="sink", shape=(heads.query,), initializer="zeros", autocast=False
            )
        if self._position is not None:
            self._position.prepare(heads.query, heads.size)
        if not self.trainable:  # which the sublayers, made just now, were not told
            for sublayer in flatten_layers(self, include_self=False):
                sublayer.trainable = False

    def _make_sublayers(self, query_shape: Shape, value_shape: Shape, key_shape: Shape) -> None:
        heads = self._heads
        self._query_dense = self._projection("query", query_shape, heads.query, heads.size)
        self._key_dense = self._projection("key", key_shape, heads.key_value, heads.size)
        if self._use_gate:
            self._gate_dense = self._projection(
                "gate", query_shape, heads.query, heads.value_size, activation="sigmoid"
            )
        self._value_dense = self._projection(
            "value", value_shape, heads.key_value, heads.value_size
        )
        self._dropout_layer = keras.layers.Dropout(
            rate=self._dropout, dtype=self._policy_of("dropout"), seed=self.seed
        )
        self._output_dense = self._output_projection(query_shape)
        if self._qk_norm:
            self._query_norm = self._norm("query_norm")
            self._key_norm = self._norm("key_norm")

    def _check_kernels(self) -> None:
        """All of them before the first is made."""
        heads, features = self._heads, self._feature_sizes
        checks.kernel("query", (features[0], heads.query, heads.size))
        checks.kernel("value", (features[1], heads.key_value, heads.value_size))
        checks.kernel("key", (features[2], heads.key_value, heads.size))
        output = self._output_shape or (features[0],)
        checks.kernel("attention_output", (heads.query, heads.value_size, *output))

    def _projection(
        self, name: str, shape: Shape, heads: int, size: int, activation: Any = None
    ) -> keras.layers.EinsumDense:
        equation = projection_equation(len(shape))
        dense = keras.layers.EinsumDense(
            equation,
            output_shape=(None,) * (len(shape) - 2) + (heads, size),
            bias_axes=equation[-2:] if self._use_bias else None,
            activation=activation,
            name=name,
            **self._sublayer_options(name),
        )
        # Masks pass through it untouched; without this Keras warns at each call.
        dense.supports_masking = True
        dense.build(shape)
        return dense

    def _output_projection(self, query_shape: Shape) -> keras.layers.EinsumDense:
        features = self._output_shape or (query_shape[-1],)
        equation, made = output_equation(len(query_shape), len(features))
        dense = keras.layers.EinsumDense(
            equation,
            output_shape=(None,) * (len(query_shape) - 2) + tuple(features),
            bias_axes=made if self._use_bias else None,
            name="attention_output",
            **self._sublayer_options("attention_output"),
        )
        dense.build((*query_shape[:-1], self._heads.query, self._heads.value_size))
        return dense

    def _sublayer_options(self, name: str) -> dict[str, Any]:
        return {
            "kernel_initializer": _own_initializer(self._kernel_initializer, name, "kernel"),
            "bias_initializer": _own_initializer(self._bias_initializer, name, "bias"),
            "kernel_regularizer": self._kernel_regularizer,
            "bias_regularizer": self._bias_regularizer,
            "activity_regularizer": self._activity_regularizer,
            "kernel_constraint": self._kernel_constraint,
            "bias_constraint": self._bias_constraint,
            "dtype": self._policy_of(name),
        }

    def _policy_of(self, name: str) -> keras.dtype_policies.DTypePolicy:
        """The dtype policy of one sublayer.

        Keras's projections cannot save themselves quantised when theirs is a map.
        """
        if isinstance(self.dtype_policy, keras.dtype_policies.DTypePolicyMap):
            return self.dtype_policy[f"{self.path}/{name}"]
        return self.dtype_policy

    def _norm(self, name: str) -> keras.layers.Layer:
        norm = keras.layers.RMSNormalization(
            axis=-1, epsilon=1e-6, name=name, dtype=self._policy_of(name)
        )
        norm.supports_masking = True  # as the projections
        norm.build((None, None, None, self._heads.size))
        return norm

    # Calling -------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the layer, `layer(x, x)` and `layer(x, x, x)` as `layer(x)`.

        Keras casts each argument by itself, after which one tensor given twice
        could not be told from two.
        """
        given = dict(zip(_CALL_ARGUMENTS, args, strict=False)) | kwargs
        query, value, key = (
            checks.one_tensor(name, given.get(name)) for name in ("query", "value", "key")
        )
        if query is None:
            raise ValueError("`query` is required: a tensor (batch, length, features).")
        if value is query and (key is None or key is query):
            rest = {k: v for k, v in given.items() if k not in ("query", "value", "key")}
            return super().__call__(query, **rest)
        return super().__call__(*args, **kwargs)

    def call(
        self,
        query: Tensor,
        value: Tensor | None = None,
        key: Tensor | None = None,
        query_mask: Tensor | None = None,
        value_mask: Tensor | None = None,
        key_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        return_attention_scores: bool = False,
        training: bool | None = None,
        use_causal_mask: bool | None = None,
        attention_bias: Tensor | None = None,
        segment_ids: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attends. The classes document the arguments."""
        inputs = self._inputs(query, value, key)
        paddings = (query_mask, value_mask, key_mask)
        self._check_call(inputs, paddings, attention_mask, attention_bias, segment_ids, positions)
        fold = self._fold
        query_mask = self._padding(query, query_mask)
        visibility = Visibility(
            causal=self._is_causal(use_causal_mask),
            window=self._sliding_window,
            query_positions=fold.fold_tokens(positions, query),
            query_mask=query_mask,
            key_mask=self._padding_of_keys(inputs, query_mask, paddings),
            query_segments=fold.fold_tokens(segment_ids, query),
            key_segments=fold.fold_tokens(segment_ids, query),
            mask=fold.fold_scores(_boolean(attention_mask), query, inputs.key),
        )
        if inputs.self_attention:
            visibility = dataclasses.replace(visibility, key_positions=visibility.query_positions)
        bias = fold.fold_scores(attention_bias, query, inputs.key)
        inputs = self._with_projector(inputs, visibility, bias)
        heads, weights = self._attend(inputs, visibility, bias, training, return_attention_scores)
        output = self._output(inputs, heads)
        self._pass_mask_on(query_mask, query, output)
        if not return_attention_scores:
            return output
        return output, fold.unfold_scores(weights, query, inputs.key)

    def _pass_mask_on(self, query_mask: Tensor | None, query: Tensor, output: Tensor) -> None:
        """The output carries the query's folded mask."""
        if query_mask is not None and get_keras_mask(output) is None:
            set_keras_mask(output, self._fold.unfold_padding(query_mask, query))

    def rematerialized_call(
        self, layer_call: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Callable[..., Any]:
        """The call under `keras.RematScope`, with the dropout that the output had.

        Raises:
            ValueError: With an `activity_regularizer`, whose losses no gradient would reach.
        """
        if is_observed():  # which takes part in the call, and needs no gradient
            return layer_call
        call = RecomputedCall(layer_call, args, kwargs)
        recomputed = super().rematerialized_call(call, *args, **kwargs)
        if recomputed is call:
            return layer_call
        if self._activity_regularizer is not None:
            raise ValueError(
                "`activity_regularizer` and `keras.RematScope` do not go together: the losses "
                "of a call that is computed again have no gradient. Leave one of them out. "
                f"Received: layer {self.name!r} with {self._activity_regularizer}"
            )
        given = dict(zip(_CALL_ARGUMENTS, args, strict=False)) | kwargs
        query, query_mask = given["query"], given.get("query_mask")
        if self._dropout > 0.0 and given.get("training"):
            call.seed = draw_seed(self._dropout_layer.seed_generator)

        def run(*_: Any, **__: Any) -> Any:
            result = recomputed(*call.tensors)
            output = result[0] if given.get("return_attention_scores") else result
            self._pass_mask_on(self._padding(query, query_mask), query, output)
            return result

        return run

    def _inputs(self, query: Tensor, value: Tensor | None, key: Tensor | None) -> Call:
        if value is None and key is not None:
            raise ValueError("`key` needs a `value` as well: keys say where, values what.")
        value = query if value is None else value
        key = value if key is None else key
        return Call(query, value, key, value is query and key is query)

    def _padding(self, x: Tensor, *masks: Tensor | None) -> Tensor | None:
        """The mask that an input carries and those given with it, as one (B', T)."""
        attached = get_keras_mask(x)
        folded = [self._fold.fold_padding(attached, x, attached=True)]
        folded += [
            self._fold.fold_padding(mask, x, attached=False)
            for mask in masks
            if mask is not attached  # Keras hands it over as an argument as well
        ]
        return joined_masks(*folded)

    def _padding_of_keys(
        self, inputs: Call, padding: Tensor | None, given: tuple[Tensor | None, ...]
    ) -> Tensor | None:
        """(B', S), the queries' `padding` itself where nothing but the input's mask is given."""
        attached = get_keras_mask(inputs.query)
        if inputs.self_attention and all(mask is None or mask is attached for mask in given):
            return padding
        _, value_mask, key_mask = given
        if inputs.key is inputs.value:
            return self._padding(inputs.key, value_mask, key_mask)
        return joined_masks(
            self._padding(inputs.value, value_mask), self._padding(inputs.key, key_mask)
        )

    def _with_projector(self, inputs: Call, visibility: Visibility, bias: Tensor | None) -> Call:
        """Says how the inputs are projected: as they are, unless what is masked out may be NaN."""
        query_mask, key_mask = visibility.query_mask, visibility.key_mask
        inputs = dataclasses.replace(inputs, query_mask=query_mask, key_mask=key_mask)
        lengths = (self._fold.length(inputs.query), self._fold.length(inputs.key))
        if not may_mask_out(visibility, bias, *lengths):
            return inputs
        if current_context().adds_one_token():
            # It sees all but padding: that, too, must leave no NaN in a cache.
            projector = Projector(True if query_mask is None else None)
        else:
            projector = Projector.of(inputs.query, inputs.value, inputs.key)
        return dataclasses.replace(inputs, projector=projector)

    def _is_causal(self, use_causal_mask: bool | None) -> bool:
        if use_causal_mask is None:
            return self._use_causal_mask
        return checks.switch("use_causal_mask", use_causal_mask)

    def _attend(
        self,
        inputs: Call,
        visibility: Visibility,
        bias: Tensor | None,
        training: bool | None,
        return_scores: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Heads (B, T, N, Hv), and their weights where asked for."""
        context = current_context()
        query = self._fold.fold(self._query_heads(inputs))  # (B, T, N, H)
        key, value = context.project(
            self, inputs.self_attention, lambda: self._key_value_heads(inputs)
        )  # (B, S, K, H), (B, S, K, Hv)
        visibility = context.set_positions(self, visibility, inputs.self_attention)
        if self._position is not None:
            query, key = self._rotated(query, key, visibility, inputs.self_attention)
        causal = visibility.causal  # a cache may have put the rule into a mask
        key, value, visibility = context.update_cache(
            self, key, value, visibility, inputs.self_attention
        )
        biases = [TensorBias(bias)] if bias is not None else []
        if self._position is not None:
            biases.append(self._position.block_bias(self._heads.query, causal))
        options = {
            "biases": biases,
            "soft_cap": self._logit_soft_cap,
            "sink": self.sink if self._attention_sink else None,
        }
        query, key, value = _in_one_dtype(query, key, value)
        context.observe(self, _weights_of(self.name, query, key, value, visibility, options))
        if type(self)._compute_attention is not AttentionLayer._compute_attention:
            self._check_overridden(options)
            heads, weights = self._attend_overridden(
                query, key, value, visibility, training, return_scores
            )
        else:
            heads, weights = self._engine(
                query, key, value, visibility, training, return_scores, **options
            )
        return context.scale_heads(self, heads), weights

    def _rotated(
        self, query: Tensor, key: Tensor, visibility: Visibility, self_attention: bool
    ) -> tuple[Tensor, Tensor]:
        """Queries and the keys projected in this call, with their positions applied."""
        queries = visibility.positions_of_queries(Span(0, ops.shape(query)[1]))
        if self_attention:
            keys = queries
        else:
            keys = visibility.positions_of_keys(Span(0, ops.shape(key)[1]))
        return self._position.rotate(query, key, queries, keys)

    def _engine(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        visibility: Visibility,
        training: bool | None,
        return_scores: bool,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        rate = self._dropout if training else 0.0
        flash = self._flash()
        result = attend(
            query,
            key,
            value,
            visibility,
            **options,
            rate=rate,
            seed=self._seed() if rate > 0.0 else None,
            return_scores=return_scores,
            implementation="plain" if flash is False else None,
            never_hold_scores=flash is True,
        )
        return result if return_scores else (result, None)

    def _seed(self) -> Any:
        drawn = seed_of_call()
        return self._dropout_layer.seed_generator if drawn is None else drawn

    def _compute_attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        training: bool | None = None,
        return_attention_scores: bool = False,
        use_causal_mask: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention of projected heads, which subclasses may override as in Keras.

        An override gets one mask with everything in it. This method itself is not
        in the way of a call: the engine never makes that mask.
        """
        query, key, value = map(ops.convert_to_tensor, (query, key, value))
        mask = self._fold.fold_scores(_boolean(attention_mask), query, key)
        visibility = Visibility(causal=use_causal_mask, mask=mask)
        return self._engine(query, key, value, visibility, training, return_attention_scores)

    def _check_overridden(self, options: dict[str, Any]) -> None:
        """Refuses what a `_compute_attention()` as in Keras is never told."""
        for name, given in (
            ("attention_bias` or a `position` with biases", join_biases(options["biases"])),
            ("logit_soft_cap", options["soft_cap"]),
            ("attention_sink", options["sink"]),
        ):
            if given is not None:
                raise ValueError(
                    f"`{type(self).__name__}` overrides `_compute_attention()`, which as in "
                    f"Keras takes a mask only, so `{name}` would be lost. Leave it out, or do "
                    "not override the method."
                )

    def _attend_overridden(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        visibility: Visibility,
        training: bool | None,
        return_scores: bool,
    ) -> tuple[Tensor, Tensor | None]:
        rows, columns = Span(0, ops.shape(query)[1]), Span(0, ops.shape(key)[1])
        mask = visibility.block(rows, columns)
        if visibility.query_mask is not None:
            seen = visibility.query_mask[:, None, :, None]
            mask = seen if mask is None else ops.logical_and(mask, seen)
        extra = {"return_attention_scores": True} if return_scores else {}
        return self._compute_attention(
            query, key, value, attention_mask=mask, training=training, **extra
        )

    def _query_heads(self, inputs: Call) -> Tensor:
        def heads(query: Tensor) -> Tensor:
            heads = current_context().apply(self._query_dense, query)
            return _normalized(self._query_norm, heads) if self._qk_norm else heads

        real = functools.partial(self._unfolded, inputs.query_mask, inputs.query)
        return inputs.projector.project(heads, inputs.query, real)  # (B, ..., N, H)

    def _key_value_heads(self, inputs: Call) -> tuple[Tensor, Tensor]:
        apply, project = current_context().apply, inputs.projector.project

        def heads(key: Tensor) -> Tensor:
            heads = apply(self._key_dense, key)
            return _normalized(self._key_norm, heads) if self._qk_norm else heads

        real = functools.partial(self._unfolded, inputs.key_mask, inputs.key)
        key = project(heads, inputs.key, real)  # (B, ..., K, H)
        value = functools.partial(apply, self._value_dense)
        value = project(value, inputs.value, real)  # (B, ..., K, Hv)
        return self._fold.fold(key), self._fold.fold(value)

    def _unfolded(self, mask: Tensor | None, like: Tensor) -> Tensor | None:
        return None if mask is None else self._fold.unfold_padding(mask, like)

    def _output(self, inputs: Call, heads: Tensor) -> Tensor:
        apply, projector = current_context().apply, inputs.projector

        def output(heads: Tensor) -> Tensor:
            if self._use_gate:
                # The heads of a query that is not finite are NaN, or zero if it sees no key.
                gate = apply(self._gate_dense, projector.clean(inputs.query))
                heads = ops.multiply(heads, gate)
            return apply(self._output_dense, heads)

        heads = self._fold.unfold(heads, inputs.query)  # (B, ..., N, Hv)
        return projector.project(output, heads, features=2)

    def _flash(self) -> bool | None:
        """What the layer says, or else Keras's global switch, which can only forbid."""
        if self._flash_attention is not None:
            return self._flash_attention
        return False if keras.config.is_flash_attention_enabled() is False else None

    # Shapes --------------------------------------------------------------------

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        """The output carries the query's mask."""
        return previous_mask

    def compute_output_shape(
        self,
        query_shape: Shape,
        value_shape: Shape | None = None,
        key_shape: Shape | None = None,
    ) -> Shape:
        """(B, T, D), or the query's axes followed by `output_shape`."""
        query_shape, _, _ = self._check_inputs(query_shape, value_shape, key_shape)
        features = self._output_shape or (query_shape[-1],)
        return (*query_shape[:-1], *features)

    def compute_output_spec(
        self,
        query: Tensor,
        value: Tensor | None = None,
        key: Tensor | None = None,
        query_mask: Tensor | None = None,
        value_mask: Tensor | None = None,
        key_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        return_attention_scores: bool = False,
        training: bool | None = None,
        use_causal_mask: bool | None = None,
        attention_bias: Tensor | None = None,
        segment_ids: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Any:
        """Symbolic shapes and dtypes, with every check that a call makes."""
        inputs = self._inputs(query, value, key)
        paddings = (query_mask, value_mask, key_mask)
        self._check_call(inputs, paddings, attention_mask, attention_bias, segment_ids, positions)
        self._is_causal(use_causal_mask)
        shape = self.compute_output_shape(query.shape, inputs.value.shape, inputs.key.shape)
        output = keras.KerasTensor(shape, dtype=self.compute_dtype)
        if query_mask is not None:
            set_keras_mask(output, query_mask)
        if not return_attention_scores:
            return output
        scores = shapes.scores_shape(query.shape, inputs.key.shape, self._fold, self._heads.query)
        return output, keras.KerasTensor(scores, dtype=self.compute_dtype)

    def _check_inputs(
        self, query: Shape, value: Shape | None, key: Shape | None
    ) -> tuple[Shape, Shape, Shape]:
        """The shapes of the inputs, defaults filled in, if they belong together."""
        value = query if value is None else value
        key = value if key is None else key
        query, value, key = tuple(query), tuple(value), tuple(key)
        built_for = self._feature_sizes if self.built else None
        shapes.check_inputs(query, value, key, self._attention_axes, built_for)
        return query, value, key

    def _check_call(
        self,
        inputs: Call,
        paddings: tuple[Tensor | None, ...],
        attention_mask: Tensor | None,
        attention_bias: Tensor | None,
        segment_ids: Tensor | None,
        positions: Tensor | None,
    ) -> None:
        query, value, key = self._check_inputs(
            inputs.query.shape, inputs.value.shape, inputs.key.shape
        )
        given = {
            "attention_mask": attention_mask,
            "attention_bias": attention_bias,
            "segment_ids": segment_ids,
            "positions": positions,
        }
        tensors = (inputs.query, inputs.value, inputs.key)
        for name, mask, x in zip(_PADDINGS, paddings, tensors, strict=True):
            given[name] = None if mask is get_keras_mask(x) else mask
        for name, x in zip(("query", "value", "key"), tensors, strict=True):
            checks.floats(name, x)
        if all(x is None for x in given.values()):
            return
        received = {name: shapes.shape_of(name, x) for name, x in given.items()}
        shapes.check_call(CallShapes(query, value, key, **received), self._fold, self._heads.query)
        checks.bias(attention_bias)
        for name in ("segment_ids", "positions"):
            checks.integers(name, given[name])
        if segment_ids is not None and not inputs.self_attention:
            raise ValueError(
                "`segment_ids` are for self-attention: queries and keys share them. "
                "Use `attention_mask` for cross-attention. Received: "
                f"query {tuple(query)}, value {tuple(value)}, key {tuple(key)}"
            )

    # Saving --------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        policy = self._policy_of_sublayers()
        if policy is not None:
            config["dtype"] = keras.dtype_policies.serialize(policy)
        config |= {
            "dropout": self._dropout,
            "use_bias": self._use_bias,
            "use_gate": self._use_gate,
            "sliding_window": self._sliding_window,
            "flash_attention": self._flash_attention,
            "seed": self.seed,
            "activity_regularizer": keras.regularizers.serialize(self._activity_regularizer),
        }
        for module, kinds in (
            (keras.initializers, ("kernel_initializer", "bias_initializer")),
            (keras.regularizers, ("kernel_regularizer", "bias_regularizer")),
            (keras.constraints, ("kernel_constraint", "bias_constraint")),
        ):
            config |= {kind: module.serialize(getattr(self, kind)) for kind in kinds}
        # Only what was asked for: Keras's own layers do not know these.
        if self._position is not None:
            config["position"] = position_config(self._position)
        for name, default in (
            ("qk_norm", False),
            ("logit_soft_cap", None),
            ("attention_sink", False),
            ("use_causal_mask", False),
        ):
            if getattr(self, name) != default:
                config[name] = getattr(self, name)
        return config

    def _policy_of_sublayers(self) -> keras.dtype_policies.DTypePolicyMap | None:
        """The dtype policies that quantisation gave the projections, by path.

        Keras quantises sublayers without telling this layer; a reloaded one must
        build them quantised, or their weights do not fit.
        """
        if not self.built:
            return None
        policies = {
            dense.path: dense.dtype_policy
            for dense in self._projections()
            if dense.dtype_policy != self._policy_of(dense.name)
        }
        if not policies:
            return None
        default = self.dtype_policy
        if isinstance(default, keras.dtype_policies.DTypePolicyMap):
            policies = {**default, **policies}
            default = default.default_policy
        return keras.dtype_policies.DTypePolicyMap(default_policy=default, policy_map=policies)

    def _projections(self) -> list[keras.layers.EinsumDense]:
        names = ("_query_dense", "_key_dense", "_value_dense", "_gate_dense", "_output_dense")
        return [getattr(self, name) for name in names if hasattr(self, name)]


def _normalized(norm: keras.layers.Layer, heads: Tensor) -> Tensor:
    """Normalised heads, in float64 if that is the norm's dtype: Keras computes in float32."""
    if norm.compute_dtype != "float64":
        return norm(heads)
    return rms_normalize(ops.cast(heads, "float64"), norm.scale, norm.epsilon)


def _in_one_dtype(*tensors: Tensor) -> list[Tensor]:
    """The tensors in the dtype that holds them all: a policy map may give each its own."""
    dtypes = [keras.backend.standardize_dtype(tensor.dtype) for tensor in tensors]
    if len(set(dtypes)) == 1:
        return list(tensors)
    # Keras's own rule gives float32 for float64 and another.
    dtype = "float64" if "float64" in dtypes else keras.backend.result_type(*dtypes)
    return [ops.cast(tensor, dtype) for tensor in tensors]


_SUBLAYERS = ("query", "key", "gate", "value", "attention_output")
_PADDINGS = ("query_mask", "value_mask", "key_mask")
_CALL_ARGUMENTS = tuple(inspect.signature(AttentionLayer.call).parameters)[1:]


def joined_masks(*masks: Tensor | None) -> Tensor | None:
    """The logical and of those given, each once."""
    given: list[Tensor] = []
    for mask in masks:
        if mask is not None and not any(mask is other for other in given):
            given.append(mask)
    if not given:
        return None
    return functools.reduce(ops.logical_and, [ops.cast(mask, "bool") for mask in given])


def _weights_of(
    name: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visibility: Visibility,
    options: dict[str, Any],
) -> Callable[[Span | None], Tensor]:
    def weights(rows: Span | None = None) -> Tensor:
        checks.rows(rows, query.shape[1], name)
        return attention_weights(make_problem(query, key, value, visibility, **options), rows)

    return weights


def _boolean(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else ops.cast(mask, "bool")


def _own_initializer(initializer: Any, sublayer: str, kind: str) -> Any:
    """A copy for one weight: sharing a seed would give all of them the same values."""
    if not isinstance(initializer, keras.initializers.Initializer):
        return initializer
    config = initializer.get_config()
    if isinstance(config.get("seed"), int):
        # The first keeps it, and so the kernel that Keras's layer would have.
        weight = [(name, k) for k in ("kernel", "bias") for name in _SUBLAYERS]
        config["seed"] += weight.index((sublayer, kind))
    elif config.get("seed") is not None:
        return initializer  # a generator, which draws on
    return initializer.__class__.from_config(config)
