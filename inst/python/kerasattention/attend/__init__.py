"""Attention as pure functions of arrays; knows nothing of layers."""

from kerasattention.attend.api import scaled_dot_product_attention

__all__ = ["scaled_dot_product_attention"]
