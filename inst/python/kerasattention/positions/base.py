"""What a layer needs of a kind of position: turned queries and keys, or a bias."""

from kerasattention.attend.bias import BlockBias
from kerasattention.attend.tensors import Tensor


class Position:
    """Does nothing; subclasses override one of the two."""

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
            key_positions: (S) or (B, S) integers.
        """
        return query, key

    def block_bias(self, num_query_heads: int, causal: bool) -> BlockBias | None:
        """The bias of the logits, if this kind has one."""
        return None
