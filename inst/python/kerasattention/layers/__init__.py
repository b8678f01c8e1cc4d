"""The attention layers: projections around the attention of `attend`."""

from kerasattention.layers.group_query_attention import GroupQueryAttention
from kerasattention.layers.multi_head_attention import MultiHeadAttention

__all__ = ["GroupQueryAttention", "MultiHeadAttention"]
