"""Grouped-query attention, a drop-in replacement of `keras.layers.GroupQueryAttention`."""

from typing import Any

import keras

from kerasattention import checks
from kerasattention.layers.attention import AttentionLayer, Heads, Shape
from kerasattention.positions.base import Position


# The class is named as Keras names its own: weight files are keyed by class name.
@keras.saving.register_keras_serializable(package="kerasattention", name="GroupQueryAttention")
class GroupedQueryAttention(AttentionLayer):
    """Grouped-query attention (Ainslie et al. 2023, https://arxiv.org/abs/2305.13245).

    N query heads share K key/value heads, G = N / K each. K = 1 is multi-query
    attention, K = N multi-head attention. Keys and values are never repeated.

    Shapes: B batch, T query length, S key/value length, D features.

    Args:
        head_dim: Size of each head, H.
        num_query_heads: N.
        num_key_value_heads: K, a divisor of N.
        dropout: Rate at which attention weights are dropped in training.
        use_bias: Whether the projections have biases.
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
        head_dim: int,
        num_query_heads: int,
        num_key_value_heads: int,
        dropout: float = 0.0,
        use_bias: bool = True,
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
        checks.positive_integer("head_dim", head_dim)
        checks.positive_integer("num_query_heads", num_query_heads)
        checks.positive_integer("num_key_value_heads", num_key_value_heads)
        checks.divisible_heads(num_query_heads, num_key_value_heads)
        for name in ("output_shape", "attention_axes"):
            if name in kwargs:
                raise ValueError(
                    f"`{name}` is an argument of `MultiHeadAttention` only. "
                    f"Received: {name}={kwargs[name]!r}"
                )
        super().__init__(
            Heads(num_query_heads, num_key_value_heads, head_dim, head_dim),
            dropout=dropout,
            use_bias=use_bias,
            output_shape=None,
            attention_axes=None,
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
    def head_dim(self) -> int:
        return self.heads.size

    @property
    def num_query_heads(self) -> int:
        return self.heads.query

    @property
    def num_key_value_heads(self) -> int:
        return self.heads.key_value

    @property
    def num_repeats(self) -> int:
        """G, the number of query heads that share a key/value head."""
        return self.num_query_heads // self.num_key_value_heads

    def _check_inputs(
        self, query: Shape, value: Shape | None, key: Shape | None
    ) -> tuple[Shape, Shape, Shape]:
        if len(query) > 3:
            raise ValueError(
                "Inputs must have 3 axes (batch, length, features); "
                f"`MultiHeadAttention` takes more. Received: query {tuple(query)}"
            )
        return super()._check_inputs(query, value, key)

    def _head_config(self, query: int, key_value: int) -> dict[str, int]:
        return {"num_query_heads": query, "num_key_value_heads": key_value}

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "head_dim": self.head_dim,
            "num_query_heads": self.num_query_heads,
            "num_key_value_heads": self.num_key_value_heads,
        }


GroupQueryAttention = GroupedQueryAttention
