"""Multi-head attention, a drop-in replacement of `keras.layers.MultiHeadAttention`."""

from typing import Any

import keras

from kerasattention import checks
from kerasattention.layers.attention import AttentionLayer, Heads
from kerasattention.positions.base import Position


@keras.saving.register_keras_serializable(package="kerasattention", name="MultiHeadAttention")
class MultiHeadAttention(AttentionLayer):
    """Multi-head attention (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762).

    Shapes: B batch, T query length, S key/value length, D features, N heads.

    Args:
        num_heads: N.
        key_dim: Size of each query and key head, H.
        value_dim: Size of each value head, by default `key_dim`.
        dropout: Rate at which attention weights are dropped in training.
        use_bias: Whether the projections have biases.
        output_shape: None (the query's D), or the sizes of the output's last axes.
        attention_axes: None (all between batch and features), or the axes that are
            attended, counted from 0, the batch axis. Several are attended jointly,
            in row-major order where causal masks and windows compare positions.
        flash_attention: None chooses the way of computing; False forces the plain
            one; True demands one that never holds (T, S) scores, or an error.
        kernel_initializer: Initializer of the projections' kernels.
        bias_initializer: Initializer of their biases.
        kernel_regularizer: Regularizer of the kernels.
        bias_regularizer: Regularizer of the biases.
        activity_regularizer: Regularizer of the projections' outputs.
        kernel_constraint: Constraint of the kernels.
        bias_constraint: Constraint of the biases.
        seed: Integer seed of the dropout.
        sliding_window: A query attends keys closer than this many positions
            (Beltagy et al. 2020).
        use_gate: Whether a sigmoid gate from the query multiplies each head's
            result (Qiu et al. 2025, https://arxiv.org/abs/2505.06708).
        position: None, or a kind of position such as `RotaryPosition()`.
        qk_norm: Whether each query and key head is RMS-normalised, with a learned
            scale (Henry et al. 2020, https://arxiv.org/abs/2010.04245).
        logit_soft_cap: None, or c to make the logits c * tanh(logits / c).
        attention_sink: Whether each query head has a learned logit in the
            softmax's denominator (Xiao et al. 2023, https://arxiv.org/abs/2309.17453).
        use_causal_mask: Whether calls that do not say are causal.
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
        positions: (B, T) integers, by default 0..T-1 or where a cache stands.

    Returns:
        (B, T, D), zero from the attention (so the output's bias alone) for a query
        that sees no key; with `return_attention_scores` also (B, N, T, S).

    Raises:
        ValueError: An argument or shape that does not fit; the message has both.
    """

    def __init__(
        self,
        num_heads: int,
        key_dim: int,
        value_dim: int | None = None,
        dropout: float = 0.0,
        use_bias: bool = True,
        output_shape: int | tuple[int, ...] | None = None,
        attention_axes: int | tuple[int, ...] | None = None,
        flash_attention: bool | None = None,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        seed: int | None = None,
        *,
        sliding_window: int | None = None,
        use_gate: bool = False,
        position: Position | None = None,
        qk_norm: bool = False,
        logit_soft_cap: float | None = None,
        attention_sink: bool = False,
        use_causal_mask: bool = False,
        **kwargs: Any,
    ) -> None:
        checks.positive_integer("num_heads", num_heads)
        checks.positive_integer("key_dim", key_dim)
        checks.optional_positive_integer("value_dim", value_dim)
        super().__init__(
            Heads(num_heads, num_heads, key_dim, value_dim or key_dim),
            dropout=dropout,
            use_bias=use_bias,
            output_shape=checks.optional_integers("output_shape", output_shape, least=1),
            attention_axes=checks.optional_integers("attention_axes", attention_axes),
            flash_attention=flash_attention,
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            kernel_regularizer=kernel_regularizer,
            bias_regularizer=bias_regularizer,
            activity_regularizer=activity_regularizer,
            kernel_constraint=kernel_constraint,
            bias_constraint=bias_constraint,
            seed=seed,
            sliding_window=sliding_window,
            use_gate=use_gate,
            position=position,
            qk_norm=qk_norm,
            logit_soft_cap=logit_soft_cap,
            attention_sink=attention_sink,
            use_causal_mask=use_causal_mask,
            **kwargs,
        )

    @property
    def num_heads(self) -> int:
        return self.heads.query

    @property
    def key_dim(self) -> int:
        return self.heads.size

    @property
    def value_dim(self) -> int:
        return self.heads.value_size

    # No property `output_shape`: models read it of their layers for `summary()`.

    @property
    def attention_axes(self) -> tuple[int, ...] | None:
        """As given, or all axes between batch and features once the layer is built."""
        return self._fold.axes if self.built else self._attention_axes

    # Keras's layer has these four, and names weights in files after them.

    @property
    def query_dense(self) -> keras.layers.EinsumDense:
        return self._query_dense

    @property
    def key_dense(self) -> keras.layers.EinsumDense:
        return self._key_dense

    @property
    def value_dense(self) -> keras.layers.EinsumDense:
        return self._value_dense

    @property
    def output_dense(self) -> keras.layers.EinsumDense:
        return self._output_dense

    def _head_config(self, query: int, key_value: int) -> dict[str, int]:
        if query != key_value:
            raise ValueError(
                "Multi-head attention has as many key/value heads as query heads. "
                f"Received: {query} and {key_value}"
            )
        return {"num_heads": query}

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "key_dim": self.key_dim,
            "value_dim": self.value_dim,
            "output_shape": self._output_shape,
            "attention_axes": self.attention_axes,
        }
