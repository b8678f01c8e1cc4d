"""Where the caches and rows of a decoder are under a `keras.distribution`, on JAX."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from kerasattention.attend.sharing import HeadAxes, share_of
from kerasattention.decoding.cache.spec import CacheSpec
from kerasattention.decoding.cache.storage import Arrays, ArrayStorage


class Placement:
    """Splits rows over the batch axis of the mesh, where they divide, and K over axes of heads.

    Args:
        specs: The caches of each call of an attention layer.
        batch: B.
        max_length: The number of slots of a cache without a window.
    """

    def __init__(self, specs: tuple[CacheSpec, ...], batch: int, max_length: int) -> None:
        self._shapes = [spec.shapes(batch, max_length) for spec in specs]
        self._batch = batch
        self._share = share_of(batch, 1, 1, HeadAxes())
        self._shardings = [
            {name: _sharding(spec, name, batch) for name in arrays}
            for spec, arrays in zip(specs, self._shapes, strict=True)
        ]

    def allocate(self) -> Arrays:
        """Caches of zeros: each device allocates its part of them."""
        return [
            {
                name: jnp.zeros(shape, dtype, device=shardings[name])
                for name, (shape, dtype) in arrays.items()
            }
            for arrays, shardings in zip(self._shapes, self._shardings, strict=True)
        ]

    def keep(self, storage: ArrayStorage) -> Arrays:
        """The caches of a traced function where they were allocated."""
        return [
            {
                name: x if to[name] is None else jax.lax.with_sharding_constraint(x, to[name])
                for name, x in arrays.items()
            }
            for arrays, to in zip(storage.arrays, self._shardings, strict=True)
        ]

    def split_rows(self, tree: Any) -> Any:
        """Tensors of a traced function, those with an axis of rows split over the devices."""
        share = self._share
        if share is None:
            return tree

        def split(x: Any) -> Any:
            if not x.ndim or x.shape[0] != self._batch:
                return x
            others = [PartitionSpec.UNCONSTRAINED] * (x.ndim - 1)
            sharding = NamedSharding(share.mesh, PartitionSpec(share.batch, *others))
            return jax.lax.with_sharding_constraint(x, sharding)

        return jax.tree.map(split, tree)


def _sharding(spec: CacheSpec, name: str, batch: int) -> NamedSharding | None:
    axes = HeadAxes(spec.key_axes, spec.key_axes)
    share = share_of(batch, spec.kv_heads, spec.kv_heads, axes)
    if share is None:
        return None
    entries = share.split(spec.axes(name, batch))
    return NamedSharding(share.mesh, PartitionSpec(*(entry or None for entry in entries)))
