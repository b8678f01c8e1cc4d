"""Models over several processes, on one machine or many, with JAX."""

import tempfile
from typing import Any

import keras
import numpy as np

from kerasattention import checks
from kerasattention._keras import (
    change_jax_predictions,
    explain_errors_of_processes,
    share_seed,
    stored_value,
    with_values,
)
from kerasattention.distribution.engine import check_backend

# Seconds without a sign of life after which a process counts as dead, and the others end.
PATIENCE = 30


def attention_cluster(coordinator: str, num_processes: int, process_id: int) -> None:
    """Joins this process to others, before anything is computed in it.

    Args:
        coordinator: "host:port" of process 0, the same in all processes.
        num_processes: The number of processes.
        process_id: The number of this one, from 0.

    Raises:
        RuntimeError: JAX has computed already, or the other processes do not come.
    """
    check_backend("`attention_cluster()`", "Call `keras.distribution.initialize()`")
    checks.positive_integer("num_processes", num_processes)
    if not isinstance(coordinator, str) or not coordinator.rpartition(":")[2].isdigit():
        raise ValueError(
            '`coordinator` must be "host:port", the address of process 0. '
            f"Received: {coordinator!r}"
        )
    if not checks.is_integer(process_id) or not 0 <= process_id < num_processes:
        raise ValueError(
            f"`process_id` must lie between 0 and {num_processes - 1}. Received: {process_id!r}"
        )
    import jax

    try:
        jax.distributed.initialize(
            coordinator, num_processes, process_id, heartbeat_timeout_seconds=PATIENCE
        )
    except RuntimeError as error:
        raise RuntimeError(
            f"Process {process_id} could not join the {num_processes} processes of {coordinator}. "
            "`attention_cluster()` comes before anything is computed: restart the session, and "
            f"call it first. JAX says: {error}"
        ) from error
    share_seed()
    change_jax_predictions(_own_rows)
    explain_errors_of_processes(
        elsewhere="The model's weights are spread over processes, of which none has them all. "
        "`save_gathered(model, path)`, called in every process, writes one file.",
        lost=f"Process {process_id} of {num_processes} lost another one, which ended or cannot be "
        f"reached, of those that joined at {coordinator}. Start all of them again, from the last "
        "checkpoint. JAX says:",
    )


def _own_rows(output: Any, rows: int) -> np.ndarray:
    """The rows of a batch that this process gave, from an output over all processes."""
    distribution = keras.distribution.distribution()
    whole = _gathered(output)
    if distribution is None or whole.shape[0] == rows:
        return whole
    start = distribution.data_shard_id * rows
    return whole[start : start + rows]


def _gathered(value: Any) -> np.ndarray:
    """A value as an array of this process. Called in every process, for the same value."""
    if getattr(value, "is_fully_addressable", True) or value.is_fully_replicated:
        return np.asarray(value)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(value, tiled=True))


def local_rows(n: int, global_batch: int) -> np.ndarray:
    """The rows of the data that this process gives to `fit()`, in order, counted from 0.

    Process by process they are the rows of its part of each global batch. The rows behind the last
    full batch are left out. `batch_size` is then `len(rows) // (n // global_batch)`.

    Args:
        n: The number of rows of all data.
        global_batch: The number of rows of a batch over all processes.
    """
    checks.positive_integer("n", n)
    checks.positive_integer("global_batch", global_batch)
    distribution = keras.distribution.distribution()
    if distribution is None:
        raise ValueError("`local_rows()` is for code within `with_distribution()`.")
    replicas = distribution.num_model_replicas
    if global_batch % replicas or n < global_batch:
        raise ValueError(
            f"`global_batch` must be a multiple of {replicas}, the parts of a batch, and at most "
            f"`n`, {n}. Received: {global_batch}"
        )
    part = global_batch // min(replicas, distribution.num_processes)
    starts = np.arange(n // global_batch) * global_batch + distribution.data_shard_id * part
    return (starts[:, None] + np.arange(part)).ravel()


def save_gathered(model: keras.Model, path: str) -> None:
    """Saves a model whose weights are spread over processes in one file, as `model.save()` does.

    Call it in every process. The first one writes the file; all return when it is written.

    Args:
        model: A model built in `with_distribution()`.
        path: The file, "name.keras".
    """
    import jax

    optimizer = getattr(model, "optimizer", None)
    variables = [*model.variables, *getattr(optimizer, "variables", ())]
    values = [_gathered(stored_value(variable)) for variable in variables]
    try:
        # JAX counts what each process compiles and sends: what one does alone would put them out
        # of step. So all write, the others to a file that is thrown away.
        with tempfile.TemporaryDirectory() as folder, with_values(variables, values):
            model.save(path if jax.process_index() == 0 else f"{folder}/model.keras")
    finally:
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            multihost_utils.sync_global_devices("kerasattention_save_gathered")
