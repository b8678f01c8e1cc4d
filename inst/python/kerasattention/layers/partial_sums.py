"""Adds up inputs of which torch's processes have partial sums, as after an output projection.

Else each projection of a layer would add them up again, in one more collective operation.
"""

from typing import Any

from kerasattention.attend.tensors import is_dtensor


def added_up(*tensors: Any) -> tuple[Any, ...]:
    """The tensors, and where one is a DTensor of partial sums, their sum; equal ones stay one."""
    if not any(is_dtensor(x) for x in tensors):
        return tensors
    sums = {id(x): x for x in tensors}
    sums = {key: _added_up(x) for key, x in sums.items()}
    return tuple(sums[id(x)] for x in tensors)


def _added_up(x: Any) -> Any:
    if not is_dtensor(x) or not any(placement.is_partial() for placement in x.placements):
        return x
    from torch.distributed.tensor import Replicate

    placements = [
        Replicate() if placement.is_partial() else placement for placement in x.placements
    ]
    return x.redistribute(x.device_mesh, placements)
