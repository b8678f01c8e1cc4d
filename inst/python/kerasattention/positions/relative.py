"""Learned biases of the logits, one per bucket of distances and head."""

from collections.abc import Sequence
from typing import Any, cast

import keras
from keras import ops

from kerasattention import checks
from kerasattention.attend.bias import BlockBias
from kerasattention.attend.tensors import Tensor
from kerasattention.positions.base import Position
from kerasattention.positions.buckets import BucketBias, distance_buckets
from kerasattention.positions.grid import GridBias, entries_of, with_class_token

# Tables of these sizes are made from two numbers, which may come from a file.
MOST_BUCKETS = 2**14
MOST_DISTANCE = 2**18
MOST_ENTRIES = 2**22
MOST_AXES = 4
DEFAULT_BUCKETS = 32


# A Keras layer, so that whatever holds it tracks, saves and trains the table.
@keras.saving.register_keras_serializable(package="kerasattention")
class RelativePosition(keras.layers.Layer, Position):
    """Relative position biases in buckets (Raffel et al. 2020, https://arxiv.org/abs/1910.10683).

    Each head learns one number per bucket, which is added to the logits of all
    pairs at distances of that bucket. Half of a side's buckets hold one distance
    each, the others grow with the logarithm up to `max_distance`, beyond which
    all share the last. Keys behind and ahead of the query have buckets of their
    own, unless the mask is causal: then all buckets are for the keys behind. Real
    distances count without their fraction.

    With several `axes` the offset along each axis counts, without buckets: a table
    of the product of 2 M + 1 over the axes, for positions (B, T, axes), M the
    `max_distance` of an axis, the farthest offset that has its own entry. Offsets
    are query less key, the last axis the fastest, as in Swin (Liu et al. 2021,
    https://arxiv.org/abs/2103.14030), whose windows of h x w have M = (h - 1, w - 1). Without
    positions, a layer that attends over so many axes takes the indices along each.
    With `class_token` the first token of a row has no place, as in BEiT (Bao et al. 2022,
    https://arxiv.org/abs/2106.08254): the last three entries are those of the class token's
    query, of its key, and of both; the first position of a row is not read.

    One object given to several layers is one table that they share, as in T5.

    Args:
        num_buckets: Number of buckets: even, from 4 to 16384; None for 32. Not with several
            axes.
        max_distance: Distance from which on all share a bucket, at most 262144. With
            several axes: one integer for each, or one for all.
        axes: Number of axes of a position.
        class_token: With several axes: whether the first token is a class token.
        **kwargs: `name`, `trainable`, `dtype` of a Keras layer.

    Raises:
        ValueError: A value that does not fit; the message has the rule.
    """

    def __init__(
        self,
        num_buckets: int | None = None,
        max_distance: int | Sequence[int] = 128,
        axes: int = 1,
        class_token: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.class_token = checks.switch("class_token", class_token)
        if not checks.is_integer(axes) or not 1 <= axes <= MOST_AXES:
            raise ValueError(
                f"`axes` must be an integer from 1 to {MOST_AXES}. Received: axes={axes!r}"
            )
        if self.class_token and axes == 1:
            raise ValueError(
                "`class_token` is for positions of several `axes`. Received: class_token=True, "
                "axes=1"
            )
        self._axes = axes
        self.num_heads: int | None = None
        if axes > 1:
            self.num_buckets = None
            self.max_distance = _farthest_of_axes(num_buckets, max_distance, axes)
            return
        self.num_buckets = DEFAULT_BUCKETS if num_buckets is None else num_buckets
        self.max_distance = max_distance
        _check_buckets(self.num_buckets, max_distance)

    @property
    def axes(self) -> int:
        return self._axes

    @property
    def needs_axes(self) -> bool:
        return self._axes > 1

    @property
    def compares_axes(self) -> bool:
        return self._axes > 1

    def prepare(self, num_query_heads: int, head_size: int) -> None:
        if self.num_heads is None:
            self.build(num_query_heads)
        elif self.num_heads != num_query_heads:
            raise ValueError(
                f"This `RelativePosition` has a table for {self.num_heads} heads, and a layer "
                f"with {num_query_heads} query heads cannot share it. Give that layer another "
                "`RelativePosition`."
            )

    def build(self, num_heads: int) -> None:
        """Makes the table (num_buckets, N), or (E, N) with an entry for each offset of the axes."""
        if not checks.is_integer(num_heads) or not 1 <= num_heads <= MOST_BUCKETS:
            raise ValueError(
                f"A `RelativePosition` serves 1 to {MOST_BUCKETS} heads. Received: {num_heads!r}"
            )
        self.num_heads = num_heads
        self.table = self.add_weight(
            name="table",
            shape=(self.num_entries, num_heads),
            initializer=keras.initializers.RandomNormal(stddev=0.02),
            autocast=False,
        )
        self.built = True

    def get_build_config(self) -> dict[str, Any] | None:
        return None if self.num_heads is None else {"num_heads": self.num_heads}

    def build_from_config(self, config: dict[str, Any]) -> None:
        self.prepare(config["num_heads"], 0)

    @property
    def num_entries(self) -> int:
        """Rows of the table."""
        farthest = self.max_distance
        if isinstance(farthest, tuple):
            return entries_of(farthest) + (3 if self.class_token else 0)
        return self.num_buckets or 0

    def block_bias(
        self, num_query_heads: int, causal: bool, coordinates: Tensor | None = None
    ) -> BlockBias:
        table, farthest = ops.convert_to_tensor(self.table), self.max_distance
        if isinstance(farthest, tuple):
            if self.class_token:
                coordinates = with_class_token(coordinates)  # (B|1, T, axes + 1)
            return GridBias(table, coordinates, coordinates, farthest, self.class_token)
        return self._bucket_bias(table, causal)

    def _bucket_bias(self, table: Tensor, causal: bool) -> BucketBias:
        count, farthest = cast("int", self.num_buckets), cast("int", self.max_distance)
        buckets = distance_buckets(count, farthest, bidirectional=not causal)
        return BucketBias(table, tuple(buckets.tolist()))

    def head_axis(self, variable: Any) -> int | None:
        return 1 if variable is getattr(self, "table", None) else None

    def call(self, distances: Tensor) -> Tensor:
        """The bias of distances (key position less query position), both sides: (..., N)."""
        if self.needs_axes:
            raise ValueError("With several axes the table has the bias of each offset.")
        bias = self._bucket_bias(ops.convert_to_tensor(self.table), causal=False)
        return ops.moveaxis(bias.of_distances(distances), 0, -1)  # (..., N)

    def quantize(self, *args: Any, **kwargs: Any) -> None:
        """Leaves the table as it is, where a whole model is quantised: nothing multiplies it."""

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_buckets": self.num_buckets,
            "max_distance": self.max_distance,
            **({"axes": self._axes} if self._axes > 1 else {}),
            **({"class_token": True} if self.class_token else {}),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "RelativePosition":
        return cls(**config)

    __repr__ = keras.layers.Layer.__repr__


def _check_buckets(num_buckets: Any, max_distance: Any) -> None:
    if (
        not checks.is_integer(num_buckets)
        or not 4 <= num_buckets <= MOST_BUCKETS
        or num_buckets % 2
    ):
        raise ValueError(
            f"`num_buckets` must be an even integer of at least 4 and at most {MOST_BUCKETS}, "
            f"half of it for each side. Received: num_buckets={num_buckets!r}"
        )
    if not checks.is_integer(max_distance) or max_distance <= num_buckets // 2:
        raise ValueError(
            "`max_distance` must be an integer greater than half of `num_buckets`: so "
            "many distances have a bucket of their own. Received: "
            f"max_distance={max_distance!r}, num_buckets={num_buckets}"
        )
    if max_distance > MOST_DISTANCE:
        raise ValueError(
            f"`max_distance` must be at most {MOST_DISTANCE}: the bucket of each distance is "
            f"looked up in a table. Received: max_distance={max_distance}"
        )


def _farthest_of_axes(num_buckets: Any, max_distance: Any, axes: int) -> tuple[int, ...]:
    """M of each axis."""
    if num_buckets is not None:
        raise ValueError(
            "With several `axes` each offset has an entry of the table, and `num_buckets` must "
            f"be left out. Received: num_buckets={num_buckets!r}"
        )
    given = (max_distance,) * axes if checks.is_integer(max_distance) else max_distance
    if (
        not isinstance(given, Sequence)
        or len(given) != axes
        or not all(checks.is_integer(each) and each >= 0 for each in given)
    ):
        raise ValueError(
            f"`max_distance` must be an integer of at least 0, or one for each of {axes} axes. "
            f"Received: max_distance={max_distance!r}"
        )
    if entries_of(tuple(given)) > MOST_ENTRIES:
        raise ValueError(
            f"The product of 2 * `max_distance` + 1 over the axes must be at most {MOST_ENTRIES}, "
            f"the entries of the table. Received: max_distance={max_distance!r}"
        )
    return tuple(given)
