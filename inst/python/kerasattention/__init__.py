"""Attention layers for Keras 3: correct, linear in memory, the same on every backend."""

from kerasattention.attend import scaled_dot_product_attention

__all__ = ["scaled_dot_product_attention"]
