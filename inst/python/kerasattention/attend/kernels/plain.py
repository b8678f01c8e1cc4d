"""The plain way: all (T, S) logits at once, differentiated by the backend.

The yardstick for the others, and the fastest for short sequences.
"""

from kerasattention.attend.inputs import Problem, block_output
from kerasattention.attend.tensors import Tensor


def plain_attention(problem: Problem) -> Tensor:
    """(B, K, G, T, Hv)."""
    problem = problem.scaled()
    output, _ = block_output(problem, problem.rows(), problem.columns())
    return output
