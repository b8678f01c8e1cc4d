"""Puts a distribution in force, and checks what is trained under it before Keras starts.

On JAX Keras takes the values out of the variables before it splits a batch. A batch that does not
divide, or a model on other devices, is an error in the middle of that.
"""

import contextlib
import functools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras

from kerasattention._keras import guard_jax_trainer, stored_value
from kerasattention.distribution.engine import (
    batch_shards,
    check_distribution,
    number_of_devices,
)


@contextlib.contextmanager
def with_distribution(distribution: Any) -> Iterator[Any]:
    """Builds and trains models over several devices in a `with` block.

    Args:
        distribution: A `HeadParallel` or another `keras.distribution`.

    Raises:
        RuntimeError: A backend that ignores distributions.
        ValueError: In the block: `fit()`, `evaluate()` or `predict()` of a model built outside, or
            with batches that do not divide over the devices.
    """
    check_distribution(distribution)
    guard_training()
    if distribution not in _used:
        _used.append(distribution)
    previous = keras.distribution.distribution()
    keras.distribution.set_distribution(distribution)
    try:
        yield distribution
    finally:
        keras.distribution.set_distribution(previous)


_used: list[Any] = []  # the distributions that were in force; they hold no weights


def used_distribution(model: keras.Model) -> Any:
    """The distribution in which a model was built.

    Raises:
        ValueError: A model on one device, or of a distribution that was not in force here.
    """
    for variable in model.weights:
        mesh = getattr(getattr(stored_value(variable), "sharding", None), "mesh", None)
        for distribution in reversed(_used):
            if mesh == distribution.device_mesh.backend_mesh:
                return distribution
    raise ValueError(
        f"Model {model.name!r} was not built over several devices: build it inside "
        "`with_distribution()`."
    )


@functools.cache
def guard_training() -> None:
    """Checks every call of `fit()` and the like from now on, where a distribution is in force."""
    if keras.backend.backend() == "jax":
        guard_jax_trainer(_check_call, _check_data)


def _check_call(model: keras.Model, given: Mapping[str, Any]) -> None:
    distribution = keras.distribution.distribution()
    if distribution is None:
        _warn_outside(model)
        return
    check_built_inside(model, distribution)
    x, size, steps = given.get("x"), given.get("batch_size"), given.get("steps_per_epoch")
    if "batch_size" not in given:  # `train_on_batch()` and the like
        _check_data(x)
        return
    rows, split = _rows(x), given.get("validation_split") or 0.0
    validation = given.get("validation_data")
    if rows is not None and split and validation is None:
        kept = int(rows * (1.0 - split))
        _check_rows(rows - kept, given.get("validation_batch_size") or size, None, distribution)
        rows = kept
    elif isinstance(validation, (tuple, list)):
        size_of_it = given.get("validation_batch_size") or size
        _check_rows(_rows(validation[0]), size_of_it, given.get("validation_steps"), distribution)
    _check_rows(rows, size, steps or given.get("steps"), distribution)


def _warn_outside(model: keras.Model) -> None:
    """Warns of a model over several devices whose batches are not split: it is slow, not wrong."""
    for variable in model.variables[:1]:
        mesh = getattr(getattr(stored_value(variable), "sharding", None), "mesh", None)
        batches = 1 if mesh is None else dict(mesh.shape).get("batch", 1)
        if batches > 1:
            warnings.warn(
                f"Model {model.name!r} was built over several devices. Outside of "
                f"`with_distribution()` {batches} groups of them compute all rows of each batch.",
                UserWarning,
                stacklevel=4,
            )


def _rows(x: Any) -> int | None:
    """The number of rows of arrays; None for data that comes batch by batch."""
    shapes = [getattr(leaf, "shape", None) for leaf in keras.tree.flatten(x)]
    if not shapes or any(shape is None or len(shape) == 0 for shape in shapes):
        return None
    return int(shapes[0][0])


def _check_rows(rows: int | None, size: int | None, steps: int | None, distribution: Any) -> None:
    if rows is None or rows == 0:
        return
    size = size or 32
    shards = batch_shards(distribution)
    first, last = min(size, rows), rows % size
    if first % shards:
        raise ValueError(_wrong_batch(first, shards, distribution))
    # With `steps` the last batch may not be reached; if it is, the check of each batch is left.
    if steps is None and last % shards:
        text = _wrong_batch(last, shards, distribution)
        raise ValueError(f"{text} {rows} rows in batches of {size} end with one of {last}.")


def _check_data(data: Any) -> None:
    """Checks one batch: arrays in any structure."""
    distribution = keras.distribution.distribution()
    if distribution is not None:
        for leaf in keras.tree.flatten(data):
            if leaf is not None:
                check_batch(leaf.shape, distribution)


def check_batch(shape: Sequence[int], distribution: Any) -> None:
    """Refuses a batch of this process that does not divide over its devices."""
    shards = batch_shards(distribution)
    if len(shape) > 0 and shape[0] is not None and shape[0] % shards:
        raise ValueError(_wrong_batch(shape[0], shards, distribution))


def _wrong_batch(rows: int, shards: int, distribution: Any) -> str:
    devices = number_of_devices(distribution)
    over = f"{devices} devices" if shards == devices else f"{shards} groups of devices"
    return (
        f"batches of {rows} do not divide over {over}; give a number of rows and a `batch_size` "
        f"that are multiples of {shards}. For predictions of any number of rows there is "
        "`predict_padded()`."
    )


def check_built_inside(model: Any, distribution: Any) -> None:
    """Refuses a model, or an optimizer, whose weights are on other devices.

    Raises:
        ValueError: With the name of such a weight.
    """
    devices = number_of_devices(distribution)
    optimizer = getattr(model, "optimizer", None)
    groups = {"build": model.variables, "compile": getattr(optimizer, "variables", [])}
    for verb, variables in groups.items():
        for variable in variables:
            sharding = getattr(stored_value(variable), "sharding", None)
            found = None if sharding is None else len(sharding.device_set)
            if found is not None and found != devices:
                raise ValueError(
                    f"{verb} the model inside `with_distribution()`: its weight {variable.path!r} "
                    f"is on {found} device{'s' if found > 1 else ''}, and the distribution has "
                    f"{devices}"
                )
