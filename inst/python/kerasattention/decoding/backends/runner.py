"""The runner of a plan: on one backend, and compared with full passes where that is needed."""

from typing import Any

import keras

from kerasattention.decoding.graph.plan import Plan
from kerasattention.decoding.recheck import ComparedRunner


def make_runner(plan: Plan, model: keras.Model, batch: int, max_length: int) -> Any:
    """The runner of Keras's backend."""
    backend = keras.backend.backend()
    if backend == "jax":
        from kerasattention.decoding.backends.jax import Runner
    elif backend == "tensorflow":
        from kerasattention.decoding.backends.tensorflow import Runner
    elif backend == "torch":
        from kerasattention.decoding.backends.torch import Runner
    else:
        raise ValueError(f"Backend '{backend}' cannot decode; use tensorflow, jax or torch.")
    runner = Runner(plan, model, batch, max_length)
    return ComparedRunner(runner) if plan.tried else runner
