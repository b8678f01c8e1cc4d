"""Attention layers for Keras 3: correct, linear in memory, the same on every backend."""

from kerasattention import bridge
from kerasattention.attend import scaled_dot_product_attention
from kerasattention.layers import GroupQueryAttention, MultiHeadAttention

__all__ = ["GroupQueryAttention", "MultiHeadAttention", "bridge", "scaled_dot_product_attention"]
