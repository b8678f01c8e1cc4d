"""The plain way: all (T, S) logits at once, differentiated by the backend.

The yardstick for the others, and the fastest for short sequences.
"""

from kerasattention.attend.inputs import AttentionInputs, forward_block
from kerasattention.attend.tensors import Tensor


def plain_attention(inputs: AttentionInputs) -> Tensor:
    """(B, K, G, T, Hv)."""
    inputs = inputs.scaled()
    output, _ = forward_block(inputs, inputs.rows(), inputs.columns())
    return output
