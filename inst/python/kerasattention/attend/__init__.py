"""Attention as pure functions of arrays; knows nothing of layers."""

from kerasattention.attend.api import scaled_dot_product_attention
from kerasattention.attend.partial import PartialAttention, attend_to_part, merge, sink_part

__all__ = [
    "PartialAttention",
    "attend_to_part",
    "merge",
    "scaled_dot_product_attention",
    "sink_part",
]
