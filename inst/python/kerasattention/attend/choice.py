"""Which way computes a problem: the one table of choices and their reasons."""

from collections.abc import Callable

from kerasattention.attend.blocked import blocked_attention
from kerasattention.attend.plain import plain_attention
from kerasattention.attend.problem import Problem
from kerasattention.attend.tensors import Tensor, is_static

Way = Callable[[Problem], Tensor]

WAYS: dict[str, Way] = {"plain": plain_attention, "blocked": blocked_attention}

# Below this many logits per head the plain way is as fast and simpler.
PLAIN_LOGITS = 512 * 512


def choose_way(problem: Problem, implementation: str | None, never_hold_scores: bool) -> Way:
    """The way asked for, or the one that measured best for such a problem."""
    if implementation is not None:
        if implementation not in WAYS:
            raise ValueError(
                f"`implementation` must be one of {sorted(WAYS)} or None. "
                f"Received: {implementation!r}"
            )
        return WAYS[implementation]
    if never_hold_scores:
        return blocked_attention
    length, keys = problem.query.shape[3], problem.key.shape[2]
    if not is_static(length, keys) or length * keys <= PLAIN_LOGITS:
        return plain_attention
    return blocked_attention
