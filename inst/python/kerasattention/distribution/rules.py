"""Which axes of a weight are split: rules by the weight's path."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

# The axes of a mesh by the name that rules give them: "model" is both of its parts.
MODEL_AXES = ("model_kv", "model_rep")
AXES = ("batch", "seq", *MODEL_AXES)
Spec: TypeAlias = tuple[Any, ...]

# Dense layers of an MLP: "up", "gate" and "down", alone or behind "_" ("b0_ffn_up", "up_proj_1").
_MLP_LAYER = re.compile(r"(?:^|.*[/_])(up|gate|down)(?:_proj)?(?:_\d+)?/(kernel|bias)")


def checked_rules(rules: Mapping[str, Sequence[str | None] | None] | None) -> dict[str, Any]:
    """The rules as a dictionary of patterns and tuples (None: the weight stays whole)."""
    if rules is None:
        return {}
    if not isinstance(rules, Mapping):
        raise ValueError(
            "`rules` must be a dictionary of patterns of weight paths and the names of axes, such "
            f'as {{".*head/kernel": (None, "model")}}. Received: {rules!r}'
        )
    return {pattern: _checked_axes(pattern, axes) for pattern, axes in rules.items()}


def _checked_axes(pattern: str, axes: Any) -> tuple[str | None, ...] | None:
    try:
        re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ValueError(
            f"`rules` must have regular expressions as names. Received: {pattern!r} ({error})"
        ) from error
    if axes is None:
        return None
    known = ("batch", "seq", "model", *MODEL_AXES)
    if not isinstance(axes, (tuple, list)) or any(x is not None and x not in known for x in axes):
        raise ValueError(
            f"`rules` must give each axis of a weight None or one of {', '.join(known)}. "
            f"Received: {axes!r} for {pattern!r}"
        )
    return tuple(axes)


def matching_rule(rules: Mapping[str, Any], path: str) -> str | None:
    """The pattern that a path matches as a whole; None if there is none."""
    found = [pattern for pattern in rules if re.fullmatch(pattern, path)]
    if len(found) > 1:
        raise ValueError(
            f"A weight may match one of `rules` only. Received: {found}, which both match {path!r}"
        )
    return found[0] if found else None


def axes_of_rule(axes: tuple[str | None, ...] | None, shape: Sequence[int], path: str) -> Spec:
    """The axes of a mesh for each axis of a weight."""
    if axes is None:
        return (None,) * len(shape)
    if len(axes) != len(shape):
        raise ValueError(
            f"The rule of `rules` for {path!r} must name {len(shape)} axes, as the weight has "
            f"shape {tuple(shape)}. Received: {axes!r}"
        )
    return tuple(MODEL_AXES if axis == "model" else axis for axis in axes)


def mlp_axis(path: str, rank: int) -> int | None:
    """The axis of an MLP's hidden units in the weights of its `Dense` layers; None elsewhere."""
    match = _MLP_LAYER.fullmatch(path)
    if match is None or rank != {"kernel": 2, "bias": 1}[match[2]]:
        return None
    if match[1] == "down":
        return 0 if match[2] == "kernel" else None
    return rank - 1
