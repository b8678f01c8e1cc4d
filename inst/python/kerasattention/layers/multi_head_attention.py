"""Multi-head attention, a drop-in replacement of `keras.layers.MultiHeadAttention`."""

from typing import Any, Unpack

import keras

from kerasattention import checks
from kerasattention.layers.attention import AttentionLayer
from kerasattention.layers.docs import show_shared_options
from kerasattention.layers.heads import Heads
from kerasattention.layers.options import NamedOptions, options_among


@keras.saving.register_keras_serializable(package="kerasattention", name="MultiHeadAttention")
@show_shared_options
class MultiHeadAttention(AttentionLayer):
    """Multi-head attention (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762).

    Shapes: B batch, T query length, S key/value length, D features, N heads.

    Args:
        num_heads: N.
        key_dim: Size of each query and key head, H.
        value_dim: Size of each value head, by default `key_dim`.
        output_shape: None (the query's D), or the sizes of the output's last axes.
        attention_axes: None (all between batch and features), or the axes that are
            attended, counted from 0, the batch axis. Several are attended jointly,
            in row-major order where causal masks and windows compare positions.
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
        **named: Unpack[NamedOptions],
    ) -> None:
        checks.positive_integer("num_heads", num_heads)
        checks.positive_integer("key_dim", key_dim)
        checks.optional_positive_integer("value_dim", value_dim)
        super().__init__(
            Heads(num_heads, num_heads, key_dim, value_dim or key_dim),
            options_among(locals()),
            output_shape=checks.optional_integers("output_shape", output_shape, positive=True),
            attention_axes=checks.optional_integers("attention_axes", attention_axes),
            **named,
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

    def head_config(self, query: int, key_value: int) -> dict[str, int]:
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
