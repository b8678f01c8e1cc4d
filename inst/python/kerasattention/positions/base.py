"""What a layer needs of a kind of position: turned queries and keys, or a bias."""

from collections.abc import Sequence
from typing import Any

from kerasattention.attend.bias import BlockBias
from kerasattention.attend.tensors import Tensor


class Position:
    """Does nothing; subclasses override one of `turn` and `block_bias`."""

    def prepare(self, num_query_heads: int, head_size: int) -> None:
        """Told once, when a layer is built: checks sizes, makes variables."""

    def turn(
        self,
        query: Tensor,
        key: Tensor,
        query_positions: Tensor,
        key_positions: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Queries (B, T, N, H) and keys (B, S, K, H) with their positions applied.

        Args:
            query_positions: (T) or (B, T) integers.
            key_positions: (S) or (B, S) integers; the same object as
                `query_positions` where they are the same.
        """
        return query, key

    def block_bias(self, num_query_heads: int, causal: bool) -> BlockBias | None:
        """The bias of the logits, if this kind has one."""
        return None

    def keep_heads(self, kept: Sequence[int], num_query_heads: int) -> "Position":
        """The position of a layer that keeps some of its N query heads."""
        return self

    def head_axis(self, variable: Any) -> int | None:
        """Which axis counts query heads, of a variable that this kind has."""
        return None

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Position":
        return cls(**config)

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.get_config().items())
        return f"{type(self).__name__}({options})"
