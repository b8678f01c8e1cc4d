"""Relative keys: logits that depend on the query and the distance together."""

import dataclasses
import math
from typing import Any

import keras
import numpy as np
from keras import ops

from kerasattention import checks
from kerasattention.attend.bias import BlockBias
from kerasattention.attend.finite import clean
from kerasattention.attend.mask import AttentionMask
from kerasattention.attend.tensors import (
    Tensor,
    accumulator_of,
    is_static,
    matmul,
    shape_of,
    sizes_of,
    tensor_of,
)
from kerasattention.positions.base import Position
from kerasattention.positions.distance_tables import deberta_entries, sinusoids
from kerasattention.positions.key_bias import KeyBias

KINDS = ("shaw", "huang", "transformer_xl", "deberta")
# One table of vectors for all heads.
ONE_TABLE = ("shaw", "huang")
# Their keys have products too, so each needs its own query head.
SEES_KEYS = ("huang", "deberta")
MOST_DISTANCE = 2**18


# A Keras layer, so that whatever holds it tracks, saves and trains the tables.
@keras.saving.register_keras_serializable(package="kerasattention")
class RelativeKeysPosition(keras.layers.Layer, Position):
    """Relative keys: each distance has its own key, which is multiplied with the query.

    The product is added to the logit of a query and a key at that distance, multiplied by
    the same factor, 1 / sqrt(H) by default. Distances beyond `max_distance` share its key.

    Args:
        max_distance: The largest distance that has its own key, at most 262144.
        kind: "shaw" (Shaw et al. 2018, https://arxiv.org/abs/1803.02155): one learned table
            of the distances from -max_distance to max_distance, key less query, for all
            heads.
            "huang" (Huang et al. 2020, https://arxiv.org/abs/2009.13658, method 4): the same
            table, whose rows are multiplied with the query and with the key. Needs as many
            key/value heads as query heads.
            "transformer_xl" (Dai et al. 2019, https://arxiv.org/abs/1901.02860; Conformer): the
            keys are a learned projection of sinusoids, and each head has two learned vectors,
            one added to the query for all keys, the other for relative keys.
            "deberta" (He et al. 2021, https://arxiv.org/abs/2006.03654): learned relative keys
            for queries and learned relative queries for keys, of each head, for the
            distances from -max_distance to max_distance - 1, query less key. The published
            models have `scale = 1 / sqrt(3 H)`. Needs as many key/value heads as query heads.
        num_buckets: Of "deberta": an even number of buckets of distances, each with a key: the
            distances up to a quarter of it have one each, the others grow with the
            logarithm (DeBERTa-v2). None for a key for each distance.
        width: Of "transformer_xl": the number of features of the sinusoids; by default N * H.
        **kwargs: `name`, `trainable`, `dtype` of a Keras layer.

    Raises:
        ValueError: A value that does not fit; the message has the rule.
    """

    def __init__(
        self,
        max_distance: int,
        kind: str = "shaw",
        num_buckets: int | None = None,
        width: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if kind not in KINDS:
            raise ValueError(f"`kind` must be one of {KINDS}. Received: kind={kind!r}")
        if not checks.is_integer(max_distance) or not 1 <= max_distance <= MOST_DISTANCE:
            raise ValueError(
                f"`max_distance` must be an integer from 1 to {MOST_DISTANCE}. Received: "
                f"max_distance={max_distance!r}"
            )
        self.max_distance, self.kind = max_distance, kind
        self.num_buckets = _check_buckets(num_buckets, max_distance, kind)
        self.width = _check_width(width, kind)
        self.num_heads: int | None = None
        self.head_size: int | None = None

    # Variables ---------------------------------------------------------------------------------

    def check_heads(self, num_query_heads: int, num_key_value_heads: int) -> None:
        if self.kind in SEES_KEYS and num_key_value_heads != num_query_heads:
            raise ValueError(
                f'`RelativeKeysPosition` of kind "{self.kind}" needs as many key/value heads as '
                f"query heads. Received: {num_query_heads} query heads, {num_key_value_heads} "
                "key/value heads"
            )

    def prepare(self, num_query_heads: int, head_size: int) -> None:
        if self.num_heads is None:
            self.build((num_query_heads, head_size))
        elif (self.num_heads, self.head_size) != (num_query_heads, head_size):
            raise ValueError(
                f"This `RelativeKeysPosition` has keys for {self.num_heads} heads of size "
                f"{self.head_size}, and a layer with {num_query_heads} query heads of size "
                f"{head_size} cannot share it. Give that layer another `RelativeKeysPosition`."
            )

    def build(self, heads_and_size: tuple[int, int]) -> None:
        """Makes the variables for N heads of size H."""
        heads, size = heads_and_size
        if not all(checks.is_integer(x) and x >= 1 for x in (heads, size)):
            raise ValueError(
                f"A `RelativeKeysPosition` needs numbers of heads and features. Received: {heads}, "
                f"{size}"
            )
        checks.width(heads, size)
        self.num_heads, self.head_size = heads, size
        make = {
            "shaw": self._build_one_table,
            "huang": self._build_one_table,
            "transformer_xl": self._build_transformer_xl,
            "deberta": self._build_deberta,
        }
        make[self.kind](heads, size)
        self.built = True

    def _build_one_table(self, heads: int, size: int) -> None:
        self.key_table = self._add("key_table", (2 * self.max_distance + 1, 1, size))

    def _build_transformer_xl(self, heads: int, size: int) -> None:
        self.width = heads * size if self.width is None else self.width
        shape = (self.width, heads, size)
        self.position_kernel = self._add("position_kernel", shape, 1.0 / math.sqrt(self.width))
        self.content_bias = self._add("content_bias", (heads, size))
        self.position_bias = self._add("position_bias", (heads, size))

    def _build_deberta(self, heads: int, size: int) -> None:
        shape = (self.num_buckets or 2 * self.max_distance, heads, size)
        self.key_table = self._add("key_table", shape)
        self.query_table = self._add("query_table", shape)

    def _add(self, name: str, shape: tuple[int, ...], deviation: float = 0.02) -> Any:
        checks.kernel(f"{self.name}/{name}", (shape[0], math.prod(shape[1:])))
        initializer = keras.initializers.RandomNormal(stddev=deviation)
        return self.add_weight(name=name, shape=shape, initializer=initializer, autocast=False)

    def get_build_config(self) -> dict[str, Any] | None:
        if self.num_heads is None:
            return None
        return {"num_heads": self.num_heads, "head_size": self.head_size}

    def build_from_config(self, config: dict[str, Any]) -> None:
        self.prepare(config["num_heads"], config["head_size"])

    def head_axis(self, variable: Any) -> int | None:
        if self.kind in ONE_TABLE or not any(variable is own for own in self.weights):
            return None
        return len(variable.shape) - 2

    # Logits --------------------------------------------------------------------------------------

    def key_bias(
        self, query: Tensor, key: Tensor, mask: AttentionMask, scale: float
    ) -> BlockBias | None:
        # A masked-out NaN would reach the gradients of the tables: 0 * NaN is NaN.
        query = clean(query)  # (B, T, N, H)
        if self.kind in ONE_TABLE:
            entries, table = tuple(range(2 * self.max_distance + 1)), self.key_table
            bias = KeyBias(query, ops.convert_to_tensor(table), entries, scale)
            if self.kind == "shaw":
                return bias
            return dataclasses.replace(
                bias, key=clean(key), key_table=ops.convert_to_tensor(table), sees_keys=True
            )
        if self.kind == "transformer_xl":
            farthest = self._farthest(query, key, mask)
            query = query + ops.cast(self.position_bias, query.dtype)  # (B, T, N, H)
            entries = tuple(range(2 * farthest + 1))
            if self._is_step(query):
                query, table = self._projected_back(query), self._sinusoids(farthest)
                return KeyBias(query, table[:, None], entries, scale)
            return KeyBias(query, self._projected_sinusoids(farthest), entries, scale)
        return KeyBias(
            query,
            ops.convert_to_tensor(self.key_table),
            deberta_entries(self.max_distance, self.num_buckets),
            scale,
            key=clean(key),
            key_table=ops.convert_to_tensor(self.query_table),
            sees_keys=True,
        )

    def content_query(self, query: Tensor) -> Tensor:
        if self.kind != "transformer_xl":
            return query
        return query + ops.cast(self.content_bias, query.dtype)  # (B, T, N, H)

    def _farthest(self, query: Tensor, key: Tensor, mask: AttentionMask) -> int:
        """The largest distance of a call, as far as it is known, so that no other is projected."""
        length, keys = shape_of(query)[1], shape_of(key)[1]
        if mask.has_explicit_positions or not is_static(length, keys):
            return self.max_distance
        # A cache that is filled up to a tensor's position holds it.
        offset = mask.offset if isinstance(mask.offset, int) else 0
        return min(self.max_distance, max(length + offset, keys, 2) - 1)

    def _projected_sinusoids(self, farthest: int) -> Tensor:
        width, heads, size = sizes_of(self.position_kernel)
        kernel = ops.reshape(self.position_kernel, (width, heads * size))  # (width, N * H)
        projected = matmul(self._sinusoids(farthest), kernel)  # (E, N * H)
        return ops.reshape(projected, (-1, heads, size))  # (E, N, H)

    def _sinusoids(self, farthest: int) -> Tensor:
        kernel = self.position_kernel
        dtype = keras.backend.standardize_dtype(kernel.dtype)
        return tensor_of(sinusoids(farthest, kernel.shape[0]).astype(dtype))  # (E, width)

    def _is_step(self, query: Tensor) -> bool:
        """Whether to project the queries instead of the sinusoids, which are more by far.

        On torch only: a token at 256 slots takes 5.6 ms, not 9.6, with 256 features, and 9.4 ms,
        not 22, with 512. JAX projects the sinusoids once for a loop of 64 tokens, which is 1.1
        times as fast as this.
        """
        samples, length = query.shape[:2]
        is_torch = keras.backend.backend() == "torch"
        return is_torch and length == 1 and samples <= self.head_size

    def _projected_back(self, query: Tensor) -> Tensor:
        """Queries (B, T, N, H) whose product with sinusoids is that with relative keys."""
        wide = accumulator_of(query.dtype)  # as precise as the projected sinusoids
        kernel = ops.cast(self.position_kernel, wide)  # (width, N, H)
        return ops.einsum("btnh,wnh->btnw", ops.cast(query, wide), kernel)  # (B, T, N, width)

    def call(self, distances: Tensor) -> Tensor:
        """The relative keys of distances, key less query: (..., N|1, H)."""
        if self.kind == "deberta":
            entries = deberta_entries(self.max_distance, self.num_buckets)
            farthest, table = self.max_distance, ops.convert_to_tensor(self.key_table)
            table = ops.take(table, np.array(entries, dtype="int32"), axis=0)  # (2 M + 1, N, H)
        elif self.kind in ONE_TABLE:
            farthest, table = self.max_distance, ops.convert_to_tensor(self.key_table)
        else:
            farthest, table = self.max_distance, self._projected_sinusoids(self.max_distance)
        places = ops.clip(distances, -farthest, farthest) + farthest
        return ops.take(table, ops.cast(places, "int32"), axis=0)  # (..., N|1, H)

    def quantize(self, *args: Any, **kwargs: Any) -> None:
        """Leaves the variables as they are, where a whole model is quantised."""

    def get_config(self) -> dict[str, Any]:
        further = {"num_buckets": self.num_buckets, "width": self.width}
        return {
            **super().get_config(),
            "max_distance": self.max_distance,
            "kind": self.kind,
            **{name: value for name, value in further.items() if value is not None},
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "RelativeKeysPosition":
        return cls(**config)

    __repr__ = keras.layers.Layer.__repr__


def _check_buckets(num_buckets: Any, max_distance: int, kind: str) -> int | None:
    if num_buckets is None:
        return None
    if kind != "deberta":
        raise ValueError(
            f'`num_buckets` is for the kind "deberta". Received: num_buckets={num_buckets!r}, '
            f"kind={kind!r}"
        )
    fits = checks.is_integer(num_buckets) and num_buckets >= 8 and num_buckets % 4 == 0
    if not fits or max_distance - 1 <= num_buckets // 4:
        raise ValueError(
            "`num_buckets` must be an integer of at least 8, a multiple of 4 whose quarter is "
            f"less than `max_distance` - 1. Received: num_buckets={num_buckets!r}, "
            f"max_distance={max_distance}"
        )
    return num_buckets


def _check_width(width: Any, kind: str) -> int | None:
    if width is None:
        return None
    if kind != "transformer_xl":
        raise ValueError(
            f'`width` is for the kind "transformer_xl". Received: width={width!r}, kind={kind!r}'
        )
    return checks.positive_integer("width", width)
