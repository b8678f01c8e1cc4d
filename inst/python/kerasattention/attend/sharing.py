"""How the devices of a `keras.distribution` share an attention call, on JAX and torch.

On JAX samples are split over the distribution's batch axis and heads over the mesh axes that the
caller names, where they divide; tokens over the sequence axis, if there is one. On torch (Keras
3.16) the tensors say how they are split: they are DTensors. `kernels/jax/sharded.py` and
`kernels/torch/sharded.py` run a call that is shared, `kernels/jax/ring.py` one whose tokens are
split.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import keras

from kerasattention.attend.known_values import value_on_jax
from kerasattention.attend.tensors import Axes, Tensor, is_dtensor, is_static

# What the axes of tensors count: of those that every call has, and of its results.
LAYOUTS: dict[str, Axes] = {
    "query": ("batch", "tokens", "heads", None),
    "key": ("batch", "tokens", "key_heads", None),
    "value": ("batch", "tokens", "key_heads", None),
    "sink": ("heads",),
    "seed": (None,),
}
OUTPUT: Axes = ("batch", "tokens", "heads", None)
WEIGHTS: Axes = ("batch", "heads", None, None)


class HeadAxes(NamedTuple):
    """The mesh axes over which N and K are split, the outermost first."""

    query: tuple[str, ...] = ()
    key_value: tuple[str, ...] = ()


class Ring(NamedTuple):
    """The devices that have equal parts of each sequence: a mesh axis, and their number."""

    axis: str
    size: int


@dataclasses.dataclass(frozen=True)
class Share:
    """The mesh axes over which a call is split, the outermost first; hashable.

    Those of the key/value heads are the first of those of the query heads, so that the query
    heads of a device use key/value heads of the same device.

    Attributes:
        mesh: JAX's or torch's mesh.
        batch: Axes that split B.
        query_heads: Axes that split N.
        key_heads: Axes that split K.
        ring: The devices that split T and S; None where each has all tokens.
    """

    mesh: Any
    batch: tuple[str, ...]
    query_heads: tuple[str, ...]
    key_heads: tuple[str, ...]
    ring: Ring | None = None

    @property
    def axes(self) -> set[str]:
        """All axes that split something."""
        return {*self.batch, *self.query_heads, *self._token_axes}

    @property
    def _token_axes(self) -> tuple[str, ...]:
        return () if self.ring is None else (self.ring.axis,)

    def split(self, axes: Axes, shape: tuple[int, ...] | None = None) -> list[tuple[str, ...]]:
        """The mesh axes that split each axis of a tensor; one of size 1 broadcasts."""
        split = {
            "batch": self.batch,
            "heads": self.query_heads,
            "key_heads": self.key_heads,
            "tokens": self._token_axes,
        }
        sizes = (None,) * len(axes) if shape is None else shape
        return [
            split[axis] if axis and size != 1 else ()
            for axis, size in zip(axes, sizes, strict=True)
        ]


def find_share(
    query: Tensor, key: Tensor, head_axes: HeadAxes | None, ring: Ring | None = None
) -> Share | None:
    """How a call is shared; None where it is not, so that nothing changes.

    Args:
        query: (B, T, N, H).
        key: (B, S, K, H).
        head_axes: The axes that split the heads; None for none.
        ring: The devices that split the tokens; None for none.
    """
    samples = query.shape[0] if query.shape[0] == key.shape[0] else 1
    if keras.backend.backend() == "torch":
        return _share_of_dtensors(query, key, samples)
    share = share_of(samples, query.shape[2], key.shape[2], head_axes or HeadAxes(), ring)
    return None if share is None or not _is_on(share.mesh, query) else share


def share_of(
    samples: Any, heads: int, kv_heads: int, head_axes: HeadAxes, ring: Ring | None = None
) -> Share | None:
    """How the distribution in force splits B samples, N and K heads; None if it does not."""
    distribution = keras.distribution.distribution() if keras.backend.backend() == "jax" else None
    if distribution is None or distribution.device_mesh is None:
        return None
    mesh = distribution.device_mesh.backend_mesh
    batch = _dividing(mesh, (distribution.batch_dim_name,), samples)
    of_query = _dividing(mesh, head_axes.query, heads)
    of_key = _dividing(mesh, head_axes.key_value, kv_heads)
    others = {*batch, ring.axis} if ring else set(batch)
    if set(of_query) & others:  # weights are split to save memory, and gathered for use
        of_query = ()
    share = Share(mesh, batch, of_query, _leading(of_key, of_query), ring)
    return share if share.axes else None


def _share_of_dtensors(query: Tensor, key: Tensor, samples: int) -> Share | None:
    """How the processes of a mesh share a call on torch; None where no tensor is a DTensor.

    An axis is split as the queries are. With nothing to split each process computes all: torch's
    fused kernels do not take DTensors.
    """
    meshes = [x.device_mesh for x in (query, key) if is_dtensor(x)]
    if not meshes:
        return None

    def splitting(x: Tensor, axis: int, size: int) -> tuple[str, ...]:
        names = axis_names(meshes[0])
        found = [
            index
            for index, placement in enumerate(x.placements if is_dtensor(x) else ())
            if type(placement).__name__ == "Shard" and placement.dim == axis
        ]
        parts = math.prod(meshes[0].size(index) for index in found)
        return tuple(names[index] for index in found) if size % parts == 0 else ()

    of_query, of_key = (splitting(x, 2, x.shape[2]) for x in (query, key))
    batch = splitting(query, 0, samples)
    return Share(meshes[0], batch, of_query, _leading(of_key, of_query))


def axis_names(mesh: Any) -> tuple[str, ...]:
    """The names of the axes of torch's mesh, their numbers where they have none."""
    return mesh.mesh_dim_names or tuple(str(index) for index in range(mesh.ndim))


def _leading(of_key: tuple[str, ...], of_query: tuple[str, ...]) -> tuple[str, ...]:
    """The axes that split K, if they are the first of those that split N; else none."""
    return of_key if of_key == of_query[: len(of_key)] else ()


def ring_in_force() -> Ring | None:
    """The devices that share each sequence under the distribution in force, more than one of them.

    They are the axis of the mesh that the distribution names in `seq_axis`.
    """
    distribution = keras.distribution.distribution() if keras.backend.backend() == "jax" else None
    axis = getattr(distribution, "seq_axis", None)
    if distribution is None or axis is None:
        return None
    size = distribution.device_mesh.backend_mesh.shape[axis]
    return Ring(axis, size) if size > 1 else None


def check_ring(ring: Ring, length: int, keys: int) -> None:
    """Refuses lengths that the devices of a ring do not divide, and those that differ."""
    if length != keys:
        raise ValueError(
            f"Queries and keys must have one length where sequences are split (`{ring.axis}`). "
            f"Received: {length} queries and {keys} keys"
        )
    if length % ring.size:
        longer = -(-length // ring.size) * ring.size
        raise ValueError(
            f"Sequences must divide over the {ring.size} devices of axis {ring.axis!r}. "
            f"Received: {length} tokens; pad them to {longer}"
        )


def _dividing(mesh: Any, axes: tuple[str | None, ...], size: Any) -> tuple[str, ...]:
    """The axes with more than one device, if together they divide a size."""
    found = tuple(axis for axis in axes if axis is not None and mesh.shape[axis] > 1)
    count = math.prod(mesh.shape[axis] for axis in found)
    return found if is_static(size) and size and size % count == 0 else ()


def _is_on(mesh: Any, query: Tensor) -> bool:
    """Whether the mesh may be used: not for arrays of other devices, nor inside a `shard_map()`."""
    if _is_manual():
        return False
    value = value_on_jax(query)
    if value is None or not getattr(value, "committed", False):
        return True
    return value.sharding.device_set == set(mesh.devices.flat)


def _is_manual() -> bool:
    import jax

    return bool(jax.sharding.get_abstract_mesh().manual_axes)
