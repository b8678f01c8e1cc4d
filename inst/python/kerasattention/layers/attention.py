"""The layer behind both public classes: projects, attends, and applies the output projection.

Shape letters: B batch, T query length, S key/value length, D features, N query heads, K
key/value heads, H head size, Hv value head size. Inputs are (B, ..., D): the attended axes are
folded into one length, and all others into the batch (B').

It has more than 300 lines because building, calling and saving of the one class stand together.
"""

from collections.abc import Callable
from typing import Any

import keras

from kerasattention import checks
from kerasattention._keras import flatten_layers, get_keras_mask, set_keras_mask
from kerasattention.attend.added_masks import check_not_added
from kerasattention.attend.bias import BlockBias, TensorBias
from kerasattention.attend.int32 import check_int32
from kerasattention.attend.mask import AttentionMask
from kerasattention.attend.tensors import Tensor
from kerasattention.layers import key_value_of, shapes
from kerasattention.layers.attending import AttendingLayer
from kerasattention.layers.axes import AxisFold, resolve_axes
from kerasattention.layers.context import current_context, lazy_weights
from kerasattention.layers.coordinates import check_coordinates, coordinates_of
from kerasattention.layers.heads import Heads
from kerasattention.layers.inputs import (
    INPUTS,
    MASKS,
    NUMBERS_OF_TOKENS,
    LayerCall,
    arguments_by_name,
)
from kerasattention.layers.keras_override import attend_overridden
from kerasattention.layers.nonfinite import Projector, choose_projector
from kerasattention.layers.options import OPTIONS
from kerasattention.layers.partial_sums import added_up
from kerasattention.layers.projections import in_one_dtype
from kerasattention.layers.real_positions import hide_real, shown
from kerasattention.layers.recompute import rematerialize, sublayers_scope
from kerasattention.layers.scaling import LEARNED
from kerasattention.layers.shapes import Shape
from kerasattention.layers.sharding import check_split_tokens
from kerasattention.layers.torch_parameters import check_parameters


class AttentionLayer(AttendingLayer):
    """Multi-head attention with grouped key/value heads over any axes."""

    def __init__(
        self,
        heads: Heads,
        positional: dict[str, Any],
        /,
        *,
        output_shape: tuple[int, ...] | None = None,
        attention_axes: tuple[int, ...] | None = None,
        **named: Any,
    ) -> None:
        checks.width(heads.query, max(heads.size, heads.value_size))
        given = positional | named
        options = {name: given.pop(name, option.default) for name, option in OPTIONS.items()}
        super().__init__(**given)
        self.supports_masking = True
        self._heads = heads
        self._output_shape = output_shape
        self._attention_axes = attention_axes
        self.shares_key_value = False
        for name, option in OPTIONS.items():
            option.keep(self, options[name])
        self._check_key_as_value()

    def _check_key_as_value(self) -> None:
        """Refuses `use_key_as_value` with options that the keys cannot honour."""
        if not self.use_key_as_value:
            return
        if self.key_value_of is not None:
            raise ValueError(
                "`use_key_as_value` is an option of the layer that computes the keys, "
                f"`key_value_of`. Received: key_value_of={self.key_value_of!r}"
            )
        if self._heads.value_size != self._heads.size:
            raise ValueError(
                "`value_dim` must be None or `key_dim` where keys are used as values, "
                "`use_key_as_value=True`. "
                f"Received: value_dim={self._heads.value_size}, key_dim={self._heads.size}"
            )

    def build(
        self,
        query_shape: Shape,
        value_shape: Shape | None = None,
        key_shape: Shape | None = None,
    ) -> None:
        """Makes the projections for inputs (B, ..., D)."""
        given = self._check_inputs(query_shape, value_shape, key_shape)
        rank, heads = len(query_shape), self._heads
        self._fold = AxisFold(resolve_axes(self._attention_axes, rank), rank)
        self.feature_dim = given[0][-1]
        self._feature_sizes = tuple(shape[-1] for shape in given)
        self._check_kernels(*given)
        with sublayers_scope(self):
            self._make_sublayers(*given)
        if self.attention_sink:
            self.sink = self.add_weight(
                name="sink", shape=(heads.query,), initializer="zeros", autocast=False
            )
        if self.scale == LEARNED:
            self.per_dim_scale = self.add_weight(
                name="per_dim_scale", shape=(heads.size,), initializer="zeros", autocast=False
            )
        if self.position is not None:
            self.position.check_heads(heads.query, heads.key_value)
            self.position.prepare(heads.query, self._positioned_size)
        if not self.trainable:  # the sublayers were made after the layer's flag was set
            for sublayer in flatten_layers(self, include_self=False):
                sublayer.trainable = False

    # Calling -------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the layer, `layer(x, x)` and `layer(x, x, x)` as `layer(x)`.

        Keras casts each argument by itself, after which one tensor given twice
        could not be told from two.
        """
        given = arguments_by_name(args, kwargs)
        query, value, key = (checks.one_tensor(name, given.get(name)) for name in INPUTS)
        if query is None:
            raise ValueError("`query` is required: a tensor (batch, length, features).")
        if self.use_key_as_value and key is not None and key is not value:
            raise ValueError(
                f"`key` must be left out: layer {self.name!r} uses the keys of `value` as values "
                "(`use_key_as_value`)."
            )
        for name in NUMBERS_OF_TOKENS:
            check_int32(name, given.get(name))
        for name in MASKS:
            check_not_added(name, given.get(name))
        if given.get("positions") is not None:
            given["positions"] = hide_real(given["positions"], self, query)
            if "positions" in kwargs:  # by place Keras takes tensors only
                kwargs["positions"] = given["positions"]
        if self.key_value_of is None:
            key_value_of.refuse_source(self, given)
        else:
            given[key_value_of.SOURCE] = key_value_of.source_of_call(self, given)
        alone = value is query and (key is None or key is query)
        if alone or self.key_value_of is not None:
            args = (query,)
            kwargs = {name: x for name, x in given.items() if name not in INPUTS}
        if self.shares_key_value:
            return key_value_of.call_with_key_value(self, super().__call__, args, kwargs)
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
        bidirectional: Tensor | None = None,
        key_value_from: Any = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attends. The classes document the arguments."""
        check_parameters(self)
        query, value, key = added_up(query, value, key)
        call = LayerCall(
            *(query, value, key, query_mask, value_mask, key_mask, attention_mask),
            *(return_attention_scores, training, use_causal_mask),
            *(attention_bias, segment_ids, shown(positions), bidirectional, key_value_from),
        )
        fold = self._check_call(call)
        mask = call.folded_mask(fold, self.sliding_window, self.mask)
        bias = fold.fold_scores(attention_bias, query, call.key)  # (B'|1, N|1, T|1, S|1)
        projector = choose_projector(
            call.tensors, mask, bias, fold.length(query), fold.length(call.key)
        )
        heads, weights = self._attend(call, projector, mask, bias)  # (B', T, N, Hv), (B', N, T, S)
        output = self._output(call, projector, heads)  # (B, ..., D)
        self.pass_mask_on(call.query_padding, query, output)
        if not return_attention_scores:
            return output
        return output, fold.unfold_scores(weights, query, call.key)  # (B, ..., N, T, S)

    def _attend(
        self,
        call: LayerCall,
        projector: Projector,
        mask: AttentionMask,
        bias: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Heads (B', T, N, Hv), and their weights (B', N, T, S) where asked for."""
        context, self_attention = current_context(), call.self_attention
        query = self._query_heads(call, projector)  # (B', T, N, H)
        key, value = context.project(
            self, self_attention, lambda: self._key_value_heads(call, projector)
        )  # (B', S, K, H), (B', S, K, Hv)
        mask = context.set_positions(self, mask, self_attention)
        coordinates = coordinates_of(call, self._fold, self.position)  # (B'|1, T, axes)
        query, key = self._positioned(
            query, key, mask, self_attention, coordinates
        )  # (B', T, N, H), (B', S, K, H)
        query, key = self._norm_positioned(query, key, projector)  # (B', T, N, H), (B', S, K, H)
        if self.shares_key_value and self_attention:
            key_value_of.keep_key_value(self, key, value)
        query = self._scaled(query, mask, projector)  # (B', T, N, H)
        causal = mask.is_causal  # a cache may have put the rule into a mask
        key, value, mask = context.update_cache(
            self, key, value, mask, self_attention
        )  # (B', S, K, H), (B', S, K, Hv)
        biases: list[BlockBias | None] = [TensorBias(bias)] if bias is not None else []
        if self.position is not None:
            biases.append(self.position.block_bias(self._heads.query, causal, coordinates))
            biases.append(self._key_bias(query, key, mask))
            query = self.position.content_query(query)  # (B', T, N, H)
        options = {
            "biases": biases,
            "soft_cap": self.logit_soft_cap,
            "sink": self.sink if self.attention_sink else None,
            "scale": self._logit_scale,
        }
        heads, weights = self._attend_to(call, projector, query, key, value, mask, options)
        return context.scale_heads(self, heads), weights  # (B', T, N, Hv), (B', N, T, S)

    def _attend_to(
        self,
        call: LayerCall,
        projector: Projector,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: AttentionMask,
        options: dict[str, Any],
    ) -> tuple[Tensor, Tensor | None]:
        """Heads (B', T, N, Hv) and their weights, for keys and values as a cache holds them."""
        query, key, value = in_one_dtype(query, key, value)
        current_context().observe(self, lazy_weights(self.name, query, key, value, mask, options))
        if type(self)._compute_attention is not AttentionLayer._compute_attention:
            return attend_overridden(self, call, query, key, value, mask, options)
        return self._run_kernel(
            query, key, value, mask, call.training, call.return_attention_scores, options
        )

    def pass_mask_on(self, query_mask: Tensor | None, query: Tensor, output: Tensor) -> None:
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
        return rematerialize(self, super().rematerialized_call, layer_call, args, kwargs)

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

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        """Symbolic shapes and dtypes, with every check that a call makes."""
        call = LayerCall(*args, **kwargs)
        fold = self._check_call(call)
        query, _, key = call.tensors
        shape = self.compute_output_shape(*(x.shape for x in call.tensors))
        output = keras.KerasTensor(shape, dtype=self.compute_dtype)
        if call.query_mask is not None:
            set_keras_mask(output, call.query_mask)
        if not call.return_attention_scores:
            return output
        scores = shapes.scores_shape(query.shape, key.shape, fold, self._heads.query)
        return output, keras.KerasTensor(scores, dtype=self.compute_dtype)

    def _check_call(self, call: LayerCall) -> AxisFold:
        """Checks a call's arguments; returns how its axes are folded."""
        self._check_inputs(*(x.shape for x in call.tensors))
        axes = 1 if self.position is None else self.position.axes
        call.check(self._fold, self._heads.query, self.use_causal_mask, axes)
        check_coordinates(call, self._fold, self.position)
        check_split_tokens(call, self._fold, self.position)
        if self.mask is not None and not current_context().pads_tokens():
            call.check_lengths(self._fold, self.mask)
        return self._fold

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

    # Saving --------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        policy = self._policy_of_sublayers()
        if policy is not None:
            config["dtype"] = keras.dtype_policies.serialize(policy)
        for option in OPTIONS.values():
            config |= option.config_entry(self)
        return config

    def head_config(self, query: int, key_value: int) -> dict[str, int]:
        """The entries of the config that count heads, for other numbers of heads."""
        raise NotImplementedError
