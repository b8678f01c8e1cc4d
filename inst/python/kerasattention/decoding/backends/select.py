"""Selects the runner of a plan: that of the backend, compared with full passes if needed."""

import keras

from kerasattention._keras import stored_value
from kerasattention.attend.sharing import ring_in_force
from kerasattention.attend.tensors import is_dtensor
from kerasattention.decoding.backends.runner import Runner
from kerasattention.decoding.graph.plan import Plan
from kerasattention.decoding.recheck import ComparedRunner


def make_runner(plan: Plan, model: keras.Model, batch: int, max_length: int) -> Runner:
    """The runner of Keras's backend for a model, B = `batch` rows and caches of `max_length`."""
    backend = keras.backend.backend()
    runner: Runner
    if backend == "jax":
        from kerasattention.decoding.backends.jax import JaxRunner

        runner = JaxRunner(plan, model, batch, max_length)
    elif backend == "tensorflow":
        from kerasattention.decoding.backends.tensorflow import TensorFlowRunner

        runner = TensorFlowRunner(plan, model, batch, max_length)
    elif backend == "torch":
        from kerasattention.decoding.backends.torch import TorchRunner

        runner = TorchRunner(plan, model, batch, max_length)
    else:
        raise ValueError(f"Backend '{backend}' cannot decode; use tensorflow, jax or torch.")
    return ComparedRunner(runner) if plan.tried else runner


def check_can_decode(model: keras.Model) -> None:
    """Refuses to decode under a distribution that splits sequences: one token cannot be split.

    torch's tensors that processes have parts of cannot be used in its inference mode.
    """
    ring = ring_in_force()
    if ring is not None:
        raise ValueError(
            "Models are not decoded where devices split sequences. Leave `with_distribution()`, or "
            f"use one with `seq = 1`. Received: seq = {ring.size}"
        )
    if keras.backend.backend() == "torch" and any(
        is_dtensor(stored_value(variable)) for variable in model.weights
    ):
        raise ValueError(
            f"Models are not decoded on torch where processes split weights, as those of model "
            f"{model.name!r}. Save it, in every process, and decode what is loaded outside of the "
            "distribution."
        )
