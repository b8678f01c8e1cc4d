"""Which numbers of devices the heads of attention layers can be split over.

K key/value heads of G query heads each are split over n devices without an exchange of heads if
each device gets whole key/value heads with all of their query heads (n divides K), or one
key/value head with a part of its query heads (K divides n, and n / K divides G). In other cases the
key/value heads of a device are not those that its query heads need.
"""

import math
from collections.abc import Sequence

from kerasattention.layers.heads import head_axis_by_name


def can_split(n: int, key_value_heads: int, query_heads: int | None = None) -> bool:
    """Whether n devices can have the heads. Without `query_heads`: whether any number could do."""
    if key_value_heads % n == 0:
        return True
    if n % key_value_heads:
        return False
    group = None if query_heads is None else query_heads // key_value_heads
    return group is None or group % (n // key_value_heads) == 0


def largest_split(n: int, key_value_heads: int, query_heads: int | None = None) -> int:
    """The largest divisor of n that the heads can be split over; 1 always can."""
    divisors = (m for m in range(n, 0, -1) if n % m == 0)
    return next(m for m in divisors if can_split(m, key_value_heads, query_heads))


def check_split(
    n: int, key_value_heads: int, query_heads: int | None = None, layer: str | None = None
) -> None:
    """Refuses a number of devices that the heads cannot be split over."""
    if can_split(n, key_value_heads, query_heads):
        return
    where = "" if layer is None else f" (layer {layer!r})"
    of_query = ""
    if query_heads is not None:
        of_query = f" of {_counted(query_heads // key_value_heads, 'query head')} each"
    best = largest_split(n, key_value_heads, query_heads)
    raise ValueError(
        f"{_counted(key_value_heads, 'key/value head')}{of_query}{where} cannot be split over {n} "
        f"devices without gathering; model = {best} can"
    )


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


class HeadSplit:
    """How `model` devices share the heads of a model's attention layers.

    Attributes:
        sizes: The axes (gcd(K, n), n / gcd(K, n)) of the mesh. Until a layer's K is known, K = n.
    """

    def __init__(self, model: int, num_key_value_heads: int | None) -> None:
        self.model = model
        self.is_fixed = num_key_value_heads is not None
        if num_key_value_heads is not None:
            check_split(model, num_key_value_heads)
        self.sizes = self._sizes_for(num_key_value_heads or model)
        self._head_counts: dict[str, dict[str, int]] = {}  # numbers of heads by the layer's path

    def _sizes_for(self, key_value_heads: int) -> tuple[int, int]:
        first = math.gcd(key_value_heads, self.model)
        return first, self.model // first

    def note(self, path: str, shape: Sequence[int], is_checked: bool = True) -> None:
        """Notes the heads that a kernel shows; checks them once queries and keys are known.

        Raises:
            ValueError: Heads that cannot be split over the devices.
        """
        *parents, owner, name = ["", *path.split("/")]
        axis, _ = head_axis_by_name(path, len(shape))
        if axis is None or name != "kernel" or owner not in ("query", "key"):
            return
        layer = "/".join(parents).lstrip("/")
        if owner == "query":
            self._head_counts[layer] = {}
        counts = self._head_counts.setdefault(layer, {})
        counts[owner] = shape[axis]
        if len(counts) == 2 and is_checked:
            check_split(self.model, counts["key"], counts["query"], layer)
            self._fit(layer, counts["key"])

    def _fit(self, layer: str, key_value_heads: int) -> None:
        """Changes the sizes of the axes, if need be, so that a layer's heads can be split."""
        if key_value_heads % self.model == 0 or key_value_heads == self.sizes[0]:
            return
        others = {
            name: counts["key"]
            for name, counts in self._head_counts.items()
            # One key/value head is whole everywhere, whatever the axes.
            if name != layer and counts.get("key", 1) > 1 and counts["key"] % self.model
        }
        if key_value_heads == 1 and (others or self.is_fixed):
            return
        if self.is_fixed:
            raise ValueError(
                "`num_key_value_heads` must be that of the layers. Received: a mesh for "
                f"{self.sizes[0]} key/value heads, and layer {layer!r} with {key_value_heads}"
            )
        if others:
            other, heads = next(iter(others.items()))
            raise ValueError(
                f"Layers {other!r} and {layer!r} with {heads} and {key_value_heads} key/value "
                f"heads cannot be split over the same {self.model} devices without gathering; "
                f"model = {math.gcd(heads, key_value_heads, self.model)} can"
            )
        self.sizes = self._sizes_for(key_value_heads)

    def has_layer_of(self, path: str) -> bool:
        """Whether a weight with this path is that of a known attention layer or its position."""
        *parents, _ = path.split("/")
        return any("/".join(parents[:end]) in self._head_counts for end in (None, -1))
