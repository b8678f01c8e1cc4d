"""Runs an attention call on each process's samples and heads, where torch's tensors are DTensors.

torch's fused kernels for CPUs, and products whose results are written in place, do not take
DTensors. A process is given its own part of each tensor: what no other process needs is exchanged
nowhere, and the gradients of what processes share are sums that are still to be added up.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard

from kerasattention.attend.sharing import LAYOUTS, Share, axis_names
from kerasattention.attend.tensors import Axes, is_dtensor

Tensor = torch.Tensor
Named = dict[str, Tensor]


def call_sharded(
    call: Callable[[Named], Any],
    named: Named,
    axes: dict[str, Axes],
    outputs: tuple[Axes, ...],
    share: Share,
) -> tuple[Tensor, ...]:
    """The results of call(tensors of a process), which is given its tensors by name.

    Args:
        call: With a seed it is also given the numbers `first_sample` and `first_head`.
        named: query (B, T, N, H), key (B, S, K, H), value (B, S, K, Hv) and others.
        axes: What the axes of the others count.
        outputs: What the axes of each result count.
        share: How they are split.
    """
    axes = LAYOUTS | axes
    groups = named["query"].shape[2] // named["key"].shape[2]
    own = {name: _own_part(x, share, axes[name]) for name, x in named.items()}
    results = call(_with_own_heads(own, groups, share) | _offsets(own, share))
    return tuple(
        # A DTensor whose strides differ from those of its shape cannot always be made a view.
        DTensor.from_local(x.contiguous(), share.mesh, _placements(share, axes), run_check=False)
        for x, axes in zip(results, outputs, strict=True)
    )


def _own_part(x: Any, share: Share, axes: Axes) -> Tensor:
    """This process's part of a tensor; one that is no DTensor is whole in each of them."""
    whole = [Replicate()] * share.mesh.ndim
    if not is_dtensor(x):
        x = DTensor.from_local(x, share.mesh, whole, run_check=False)
    placements = _placements(share, axes, tuple(x.shape))
    names = axis_names(share.mesh)
    # Over axes that split anything a whole tensor has gradients of parts of the queries.
    of_gradient = [
        Partial() if name in share.axes and placement.is_replicate() else placement
        for name, placement in zip(names, placements, strict=True)
    ]
    return x.redistribute(share.mesh, placements).to_local(grad_placements=of_gradient)


def _placements(share: Share, axes: Axes, shape: tuple[int, ...] | None = None) -> list[Placement]:
    """Where a tensor lies, by axis of the mesh; axes of size 1 broadcast and are not split."""
    split = share.split(axes, shape)
    found = {name: Shard(axis) for axis, names in enumerate(split) for name in names}
    return [found.get(name, Replicate()) for name in axis_names(share.mesh)]


def _offsets(own: Named, share: Share) -> dict[str, Any]:
    """The numbers of a process's first sample and head, for the hash of the dropout."""
    if "seed" not in own:
        return {}
    batch, _, heads, _ = own["query"].shape
    return {
        "first_sample": _index(share, share.batch) * batch,
        "first_head": _index(share, share.query_heads) * heads,
    }


def _index(share: Share, axes: tuple[str, ...]) -> int:
    """The number of this process's part, among those that some axes split off."""
    names, index = axis_names(share.mesh), 0
    for axis in axes:
        number = names.index(axis)
        index = index * share.mesh.size(number) + share.mesh.get_local_rank(number)
    return index


def _with_own_heads(own: Named, groups: int, share: Share) -> Named:
    """Gives keys and values only the heads that the process's query heads use.

    More axes may split N than K. Where the query heads of a process are not whole groups of a
    key/value head or a part of one, each has a copy of its key/value head.
    """
    heads, kv_heads = own["query"].shape[2], own["key"].shape[2]
    if heads == kv_heads * groups:
        return own
    first = _index(share, share.query_heads[len(share.key_heads) :]) * heads
    needed = [(first + head) // groups for head in range(heads)]
    if heads % groups == 0 or groups % heads == 0:
        needed = sorted(set(needed))
    return own | {name: own[name][:, :, needed] for name in ("key", "value")}
