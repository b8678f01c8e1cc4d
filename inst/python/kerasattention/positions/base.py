"""The interface of positions: rotated queries and keys, or a bias of the logits.

Shape letters as in `attend/tensors.py`; R is the number of rotated features of a head, M the
largest distance of a table.
"""

from collections.abc import Sequence
from typing import Any

from kerasattention.attend.bias import BlockBias
from kerasattention.attend.mask import AttentionMask
from kerasattention.attend.tensors import Tensor


class Position:
    """Does nothing; a subclass overrides `rotate` or `block_bias`.

    Attributes:
        axes: The number of axes of positions (B, T, axes) that it takes beside (B, T).
        needs_axes: Whether it takes only positions with so many axes.
        longest_cached: The longest sequence in which keys that were cached earlier keep their
            rotation; None for any length.
        compares_axes: Whether its bias compares the axes of a query's position and a key's, so
            that a cache of keys does not suffice.
        class_token: Whether the first token of a row has no place on the axes.
    """

    class_token = False

    @property
    def axes(self) -> int:
        return 1

    @property
    def needs_axes(self) -> bool:
        return False

    @property
    def longest_cached(self) -> int | None:
        return None

    @property
    def compares_axes(self) -> bool:
        return False

    def prepare(self, num_query_heads: int, head_size: int) -> None:
        """Checks sizes and makes variables; called once, when a layer is built."""

    def check_heads(self, num_query_heads: int, num_key_value_heads: int) -> None:
        """Refuses numbers of heads that it does not serve, when a layer is built."""

    def rotate(
        self,
        query: Tensor,
        key: Tensor,
        query_positions: Tensor,
        key_positions: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Queries (B, T, N, H) and keys (B, S, K, H) with their positions applied.

        Args:
            query_positions: (T), (B, T) or (B|1, T, axes), integers or real numbers.
            key_positions: (S), (B, S) or (B|1, S, axes) of them; the same object as
                `query_positions` where they are the same.
        """
        return query, key

    def block_bias(
        self, num_query_heads: int, causal: bool, coordinates: Tensor | None = None
    ) -> BlockBias | None:
        """The bias of the logits; None without one.

        Args:
            coordinates: None, or positions (B|1, T, axes) of queries and keys.
        """
        return None

    def key_bias(
        self, query: Tensor, key: Tensor, mask: AttentionMask, scale: float
    ) -> BlockBias | None:
        """A bias that depends on queries (B, T, N, H) and keys (B, S, K, H); None without one.

        Args:
            scale: The factor of the logits.
        """
        return None

    def content_query(self, query: Tensor) -> Tensor:
        """The queries (B, T, N, H) that are multiplied with keys, after `key_bias()`."""
        return query

    def keep_heads(self, kept: Sequence[int], num_query_heads: int) -> "Position":
        """The position of a layer that keeps some of its N query heads."""
        return self

    def head_axis(self, variable: Any) -> int | None:
        """The axis of one of its variables that counts query heads; None if there is none."""
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
