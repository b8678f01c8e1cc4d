"""Refuses torch's `fully_shard()`, under which Keras's layers would train nothing.

It registers other parameters in place of a module's. The layers read their variables, which still
hold the first ones: the results change no more, and nothing says so. A layer sees this only where
it was sharded itself, not under `fully_shard()` of the whole model alone.
"""

from typing import TYPE_CHECKING

import keras

from kerasattention._keras import registered_parameter, stored_value

if TYPE_CHECKING:
    from kerasattention.layers.projections import ProjectingLayer


def check_parameters(layer: "ProjectingLayer") -> None:
    """Refuses a layer whose variables do not hold the parameters that torch trains.

    Raises:
        RuntimeError: On torch, where its distributed package is in use.
    """
    if keras.backend.backend() != "torch":
        return
    import torch

    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    dense = layer.projection("query")
    for variable in dense.variables[:1] if dense is not None else []:
        registered = registered_parameter(dense, variable)
        if registered is not None and registered is not stored_value(variable):
            raise RuntimeError(
                f"Layer {layer.name!r} would train nothing: the parameter that torch has for "
                f"{variable.path!r} is not the one that the layer uses. Keras variables do not "
                "follow fully_shard(); use DistributedDataParallel, or `keras.distribution` with "
                "Keras 3.16 or newer."
            )
