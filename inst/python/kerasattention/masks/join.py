"""A layer's mask, causal rule and window as the rules of one `AttentionMask`."""

from typing import Any

from kerasattention.attend.rules import CausalRule, MaskRule, WindowRule
from kerasattention.masks.base import Mask, conjuncts


def rule_fields(mask: Mask | None, causal: bool, window: int | None) -> dict[str, Any]:
    """The fields of an `AttentionMask` that hold rules of positions.

    A causal mask and a window become what `use_causal_mask` and `sliding_window` become, so
    that they take the same kernels.
    """
    further: list[MaskRule] = []
    for rule in conjuncts(mask):
        if isinstance(rule, CausalRule):
            causal = True
        elif isinstance(rule, WindowRule) and rule.before == rule.after:
            window = rule.before if window is None else min(window, rule.before)
        else:
            further.append(rule)
    return {"causal": causal, "window": window, "further_rules": tuple(further)}
