"""Refuses torch's `fully_shard()`, under which Keras's layers would train nothing.

It registers other parameters in place of a module's. The layers read their variables, which still
hold the first ones: the results change no more, and nothing says so.
"""

from typing import TYPE_CHECKING

import keras

from kerasattention._keras import (
    flatten_layers,
    outermost_layer,
    registered_parameter,
    stored_value,
)

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
    if _has_other_parameters(layer) or _is_in_sharded_model():
        raise RuntimeError(
            f"Layer {layer.name!r} would train nothing: the parameters that torch trains are not "
            "those that the layer uses. Keras variables do not follow fully_shard(); use "
            "DistributedDataParallel, or `keras.distribution` with Keras 3.16 or newer."
        )


def _has_other_parameters(layer: "ProjectingLayer") -> bool:
    """Whether the layer was sharded itself."""
    dense = layer.projection("query")
    variables = dense.variables[:1] if dense is not None else []
    registered = [(registered_parameter(dense, x), stored_value(x)) for x in variables]
    return any(found is not None and found is not value for found, value in registered)


def _is_in_sharded_model() -> bool:
    """Whether a model around the layer was sharded, which leaves the layer's own parameters."""
    from torch.distributed.fsdp import FSDPModule

    model = outermost_layer()
    return model is not None and any(isinstance(x, FSDPModule) for x in flatten_layers(model))
