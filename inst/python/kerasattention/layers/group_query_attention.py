"""Grouped-query attention, a drop-in replacement of `keras.layers.GroupQueryAttention`."""

from collections.abc import Mapping
from typing import Any, Unpack

import keras

from kerasattention import checks
from kerasattention.layers.attention import AttentionLayer
from kerasattention.layers.docs import show_shared_options
from kerasattention.layers.heads import Heads
from kerasattention.layers.options import NamedOptions, options_among
from kerasattention.layers.shapes import Shape


# The class is named as Keras names its own: weight files are keyed by class name.
@keras.saving.register_keras_serializable(package="kerasattention", name="GroupQueryAttention")
@show_shared_options
class GroupedQueryAttention(AttentionLayer):
    """Grouped-query attention (Ainslie et al. 2023, https://arxiv.org/abs/2305.13245).

    N query heads share K key/value heads, G = N / K each. K = 1 is multi-query
    attention, K = N multi-head attention. Keys and values are never repeated.

    Shapes: B batch, T query length, S key/value length, D features.

    Args:
        head_dim: Size of each head, H.
        num_query_heads: N.
        num_key_value_heads: K, a divisor of N.
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
        **named: Unpack[NamedOptions],
    ) -> None:
        checks.positive_integer("head_dim", head_dim)
        checks.positive_integer("num_query_heads", num_query_heads)
        checks.positive_integer("num_key_value_heads", num_key_value_heads)
        checks.divisible_heads(num_query_heads, num_key_value_heads)
        _check_names(named)
        super().__init__(
            Heads(num_query_heads, num_key_value_heads, head_dim, head_dim),
            options_among(locals()),
            **named,
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

    def head_config(self, query: int, key_value: int) -> dict[str, int]:
        return {"num_query_heads": query, "num_key_value_heads": key_value}

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "head_dim": self.head_dim,
            "num_query_heads": self.num_query_heads,
            "num_key_value_heads": self.num_key_value_heads,
        }


def _check_names(named: Mapping[str, object]) -> None:
    """Refuses the arguments that only multi-head attention has."""
    for name in ("output_shape", "attention_axes"):
        if name in named:
            raise ValueError(
                f"`{name}` is an argument of `MultiHeadAttention` only. "
                f"Received: {name}={named[name]!r}"
            )


GroupQueryAttention = GroupedQueryAttention
