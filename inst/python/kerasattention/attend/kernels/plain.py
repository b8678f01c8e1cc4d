"""All (T, S) logits at once, differentiated by the backend.

The yardstick for the other kernels, and the fastest for short sequences.
"""

from kerasattention.attend.block import forward_block
from kerasattention.attend.inputs import AttentionInputs
from kerasattention.attend.tensors import Tensor


def plain_attention(inputs: AttentionInputs, block_size: int | None = None) -> Tensor:
    """(B, K, G, T, Hv)."""
    inputs = inputs.scaled()
    output, _ = forward_block(inputs, inputs.rows(), inputs.columns())  # (B, K, G, T, Hv)
    return output
