"""Refuses `fit()` under TensorFlow's strategy for several workers, where Keras's `fit()` fails."""

import functools
from typing import Any

import keras

from kerasattention._keras import flatten_layers, guard_tensorflow_fit
from kerasattention.layers.attention import AttentionLayer

_NAMES = ("MultiWorkerMirroredStrategy", "CollectiveAllReduceStrategy")


@functools.cache
def guard_fit() -> None:
    """Checks each `fit()` from now on, on TensorFlow."""
    if keras.backend.backend() == "tensorflow":
        guard_tensorflow_fit(check_strategy)


def check_strategy(model: Any) -> None:
    """Refuses a model with our layers under a strategy for several workers.

    Raises:
        RuntimeError: With the loop to write instead.
    """
    strategy = model.distribute_strategy
    names = {kind.__name__ for kind in type(strategy).__mro__}
    if not names.intersection(_NAMES) or strategy.num_replicas_in_sync == 1:
        return
    if any(isinstance(layer, AttentionLayer) for layer in flatten_layers(model)):
        raise RuntimeError(
            "Keras's `fit()` fails under MultiWorkerMirroredStrategy: "
            "https://github.com/keras-team/keras/issues/20585. Write the loop: "
            "`strategy.run()` with a function that computes gradients and calls "
            "`optimizer.apply_gradients()`. Or use JAX, and `attention_cluster()`."
        )
