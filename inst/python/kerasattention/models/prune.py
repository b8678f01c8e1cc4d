"""Removes heads: smaller kernels, with the rest of the model unchanged."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from kerasattention import checks
from kerasattention.attend.tensors import numpy_of
from kerasattention.layers.attention import AttentionLayer
from kerasattention.layers.heads import head_axis, layer_with_heads, refuse_fixed_heads
from kerasattention.models.replace import replace_layers
from kerasattention.models.scores import layers_by_name, with_our_layers


def prune_heads(model: keras.Model, heads: Mapping[str, Sequence[int]]) -> keras.Model:
    """A copy of a model without some query heads.

    A key/value head whose query heads are all removed is removed too. The groups that
    stay must be of one size, since a layer's key/value heads serve as many queries
    each.

    Args:
        model: A Functional or Sequential model with our layers or Keras's.
        heads: For each attention layer's name the query heads to remove, counted
            from 0.

    Returns:
        The smaller model, compiled as `model` was.

    Raises:
        ValueError: An unknown layer or head, several layers of one name, all heads of a
            layer, groups that would differ in size, other heads in layers that share a
            position's table.
    """
    model = with_our_layers(model)
    layers = layers_by_name(model, heads)
    for name in heads:
        if name not in layers:
            raise checks.UnknownLayerError("heads", name, list(layers))
    plans = {
        name: _Kept.after_removing(layers[name], removed)
        for name, removed in heads.items()
        if len(removed) > 0
    }
    _check_shared_positions(layers, plans)

    def wanted(layer: keras.layers.Layer) -> bool:
        return isinstance(layer, AttentionLayer) and layer.name in plans

    return replace_layers(model, wanted, lambda layer: plans[layer.name].apply(layer))


def _check_shared_positions(layers: dict[str, AttentionLayer], plans: dict[str, "_Kept"]) -> None:
    """Layers that share a table have the same heads, before and after, or as many of them."""
    owners: dict[int, str] = {}
    for name, layer in layers.items():
        if not isinstance(layer.position, keras.layers.Layer):
            continue
        first = owners.setdefault(id(layer.position), name)
        one, other = (_heads_left(layers[each], plans.get(each)) for each in (first, name))
        if one == other:
            continue
        if any(layer.position.head_axis(x) is not None for x in layer.position.weights):
            raise ValueError(
                f"Layers {first!r} and {name!r} share the table of one position, which has a "
                "column for each head. Remove the same heads of both."
            )
        if len(one) != len(other):
            raise ValueError(
                f"Layers {first!r} and {name!r} share one position, which needs layers of equal "
                "numbers of heads. Remove as many heads of one as of the other."
            )


def _heads_left(layer: AttentionLayer, plan: "_Kept | None") -> list[int]:
    return list(range(layer.heads.query)) if plan is None else list(plan.query)


def least_important(
    model: keras.Model, importance: Mapping[str, np.ndarray], fraction: float
) -> dict[str, list[int]]:
    """The heads to remove for a fraction of all, least important first.

    Groups keep equal sizes: one head of each key/value head's group, the weakest first, is
    removed together, ranked by the mean of their importance. Each layer keeps at
    least one head per group.

    Args:
        importance: As `head_importance()` gives it.
        fraction: Share of all query heads to remove, at least 0 and less than 1.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"`fraction` must be at least 0 and less than 1. Received: {fraction}")
    layers = layers_by_name(with_our_layers(model), importance)
    total = sum(layer.heads.query for layer in layers.values())
    candidates = []
    for name, values in importance.items():
        if name not in layers:
            raise checks.UnknownLayerError("importance", name, list(layers))
        heads = layers[name].heads.query
        if len(values) != heads:
            raise ValueError(
                f"`importance` must have {heads} numbers for layer {name!r}, one for each head. "
                f"Received: {len(values)}"
            )
        candidates += _removals(name, layers[name], np.asarray(values))
    removed: dict[str, list[int]] = {name: [] for name in importance}
    budget = int(fraction * total)
    for _, name, heads in sorted(candidates, key=lambda candidate: candidate[0]):
        if len(heads) <= budget:
            removed[name] += heads
            budget -= len(heads)
    return {name: sorted(heads) for name, heads in removed.items()}


def _removals(
    name: str, layer: AttentionLayer, importance: np.ndarray
) -> list[tuple[float, str, list[int]]]:
    """Sets of heads whose removal leaves groups of equal size, weakest first."""
    kv_heads = layer.heads.key_value
    if kv_heads == layer.heads.query:  # each head its own group: any may go
        order = np.argsort(importance, kind="stable")[:-1]
        return [(float(importance[head]), name, [int(head)]) for head in order]
    grouped = importance.reshape(kv_heads, -1)
    order = np.argsort(grouped, axis=1, kind="stable")[:, :-1]
    size = grouped.shape[1]
    return [
        (
            float(np.take_along_axis(grouped, order[:, [rank]], axis=1).mean()),
            name,
            [int(group * size + order[group, rank]) for group in range(kv_heads)],
        )
        for rank in range(order.shape[1])
    ]


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(str(number) for number in numbers)


class _Kept:
    """The query heads and key/value heads that a layer keeps."""

    def __init__(self, query: list[int], key_value: list[int]) -> None:
        self.query, self.key_value = query, key_value

    @classmethod
    def after_removing(cls, layer: AttentionLayer, removed: Sequence[int]) -> "_Kept":
        count, kv_heads = layer.heads.query, layer.heads.key_value
        checks.indices("heads", removed, count, layer.name)
        kept = [head for head in range(count) if head not in set(removed)]
        if not kept:
            raise ValueError(
                f"Layer {layer.name!r} would lose all its {count} heads; keep at least one."
            )
        groups = [head // (count // kv_heads) for head in kept]
        sizes = {group: groups.count(group) for group in groups}
        if len(set(sizes.values())) > 1:
            raise ValueError(
                f"Layer {layer.name!r} would keep {_listed(sizes.values())} query heads of its "
                "key/value heads; the numbers must be equal. Remove the same number from each "
                f"group of {count // kv_heads}, or whole groups."
            )
        return cls(kept, sorted(sizes))

    def apply(self, layer: AttentionLayer) -> tuple[AttentionLayer, list[Any]]:
        refuse_fixed_heads(layer)
        smaller = layer_with_heads(layer, self.query, self.key_value)
        arrays = [self._select(variable, layer) for variable in layer.weights]
        return smaller, arrays

    def _select(self, variable: Any, layer: AttentionLayer) -> np.ndarray:
        array = numpy_of(variable)
        axis, of_query = head_axis(layer, variable)
        if axis is None:
            return array
        return np.take(array, self.query if of_query else self.key_value, axis=axis)
