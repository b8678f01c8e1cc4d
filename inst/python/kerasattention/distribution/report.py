"""What lies on each device: of a model, or of one that is not made yet."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras

from kerasattention import checks
from kerasattention._keras import abstract_variables, flatten_layers, stored_value
from kerasattention.distribution.check import ATTENTION_LAYERS
from kerasattention.distribution.collectives import describe
from kerasattention.distribution.engine import (
    check_backend,
    check_distribution,
    number_of_devices,
)
from kerasattention.distribution.head_parallel import HeadParallel
from kerasattention.distribution.probe import probe_layer
from kerasattention.distribution.scope import used_distribution
from kerasattention.layers.heads import head_axis_by_name


class Row(NamedTuple):
    """A weight: its path, sizes, axes of the mesh, and what a device has of it."""

    path: str
    shape: tuple[int, ...]
    spec: tuple[Any, ...]
    shard_shape: tuple[int, ...]
    bytes_per_device: int
    why: str


class ShardingReport(NamedTuple):
    """What each device has of a model's weights.

    Attributes:
        rows: One for each weight.
        summary: The totals in one line.
        weights, bytes_total, bytes_per_device, devices: The totals.
    """

    rows: list[Row]
    summary: str
    weights: int
    bytes_total: int
    bytes_per_device: int
    devices: int

    def __str__(self) -> str:
        lines = [(r.path, str(r.shape), str(r.shard_shape), r.why) for r in self.rows]
        table = [("weight", "shape", "on a device", "why"), *lines]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        padded = (
            "  ".join(x.ljust(w) for x, w in zip(line, widths, strict=True)) for line in table
        )
        return "\n".join([*(line.rstrip() for line in padded), self.summary])


def sharding_report(
    model: keras.Model | Callable[[], keras.Model],
    distribution: Any = None,
    length: int | None = None,
) -> ShardingReport:
    """What each device has of a model, and the collective operations of its attention.

    Args:
        model: A model built in `with_distribution()`; or a function that builds one, of which
            nothing is allocated.
        distribution: The distribution, for a function.
        length: The number of tokens for which the collective operations are counted, in two
            compiled attention blocks; by default that of the model's first input, at most 1024.

    Raises:
        ValueError: A model that was built on one device; a function that compiles its model; heads
            that the devices cannot share.
    """
    checks.optional_positive_integer("length", length)
    check_backend("`sharding_report()`", "`check_sharding()` says whether kernels are split")
    if isinstance(model, keras.Model):
        if distribution is not None:
            raise ValueError("`distribution` is for a function that builds a model. Leave it out.")
        distribution = used_distribution(model)
        shardings = [stored_value(variable).sharding for variable in model.weights]
        return _report(model, shardings, distribution, length)
    if not callable(model):
        raise ValueError(
            "`model` must be a Keras model or a function that builds one. "
            f"Received: {type(model).__name__}"
        )
    check_distribution(distribution)
    model = _built_abstractly(model)
    return _report(model, _planned(model, distribution), distribution, length)


def _built_abstractly(build: Callable[[], keras.Model]) -> keras.Model:
    try:
        with abstract_variables():
            model = build()
    except Exception as error:  # an R function's error is not Python's
        if "stateless scope" not in str(error):
            raise
        raise ValueError(
            "The function must only build the model: leave compile() out, and all that needs "
            "values of weights: only shapes are wanted."
        ) from error
    if not isinstance(model, keras.Model) or not model.weights:
        raise ValueError(
            f"The function must return a built model. Received: {type(model).__name__}"
        )
    return model


def _planned(model: keras.Model, distribution: Any) -> list[Any]:
    """The shardings that the weights will have."""
    if not isinstance(distribution, HeadParallel):
        return [distribution.get_variable_layout(v).backend_layout for v in model.weights]
    weights = [(v.path, tuple(v.shape)) for v in model.weights]
    for path, shape in weights:
        distribution.note(path, shape)
    return [distribution.sharding(distribution.layout_of(*weight)[0]) for weight in weights]


def _report(
    model: keras.Model, shardings: list[Any], distribution: Any, length: int | None
) -> ShardingReport:
    devices = number_of_devices(distribution)
    parts = devices // distribution.num_model_replicas
    of_attention = {id(v) for layer in _attention_layers(model) for v in layer.variables}
    rows = []
    for variable, sharding in zip(model.weights, shardings, strict=True):
        path, shape = variable.path, tuple(variable.shape)
        shard = tuple(sharding.shard_shape(shape))
        size = math.prod(shard) * _bytes_of(variable)
        why = _reason(path, shape, shard, distribution, parts, id(variable) in of_attention)
        spec = tuple(sharding.spec) + (None,) * (len(shape) - len(sharding.spec))
        rows.append(Row(path, shape, spec, shard, size, why))
    totals = (
        sum(math.prod(row.shape) for row in rows),
        sum(math.prod(v.shape) * _bytes_of(v) for v in model.weights),
        sum(row.bytes_per_device for row in rows),
        devices,
    )
    lines = [
        _totals_line(model, *totals),
        _collectives_line(model, shardings, distribution, length),
    ]
    return ShardingReport(rows, " ".join([*lines, _whole_line(model, rows)]).strip(), *totals)


def _attention_layers(model: keras.Model) -> Iterator[Any]:
    return (x for x in flatten_layers(model) if isinstance(x, ATTENTION_LAYERS) and x.built)


def _bytes_of(variable: Any) -> int:
    import jax

    return jax.numpy.dtype(variable.dtype).itemsize


def _reason(
    path: str,
    shape: tuple[int, ...],
    shard: tuple[int, ...],
    distribution: Any,
    devices: int,
    of_attention: bool,
) -> str:
    if isinstance(distribution, HeadParallel):
        return distribution.layout_of(path, shape)[1]
    axis, of_query = head_axis_by_name(path, len(shape)) if of_attention else (None, False)
    if axis is None:
        return "replicated: no rule" if shape == shard else "a rule of the distribution"
    noun = "query heads" if of_query else "key/value heads"
    if shape[axis] != shard[axis]:
        return noun
    if devices == 1:
        return "replicated: only batches are split"
    divides = shape[axis] % devices == 0
    return (
        "replicated: no rule"
        if divides
        else (f"replicated: {shape[axis]} {noun} do not divide by {devices}")
    )


def report_columns(*arguments: Any) -> dict[str, Any]:
    """The report as R makes a data frame of it: columns, and the totals by name."""
    report = sharding_report(*arguments)
    rows = report.rows
    columns = {
        "path": [row.path for row in rows],
        "shape": [_joined(row.shape) for row in rows],
        "spec": [_joined(row.spec) for row in rows],
        "shard_shape": [_joined(row.shard_shape) for row in rows],
        # R's integers have 32 bits.
        "bytes_per_device": [float(row.bytes_per_device) for row in rows],
        "why": [row.why for row in rows],
    }
    totals = {
        "summary": report.summary,
        "weights": float(report.weights),
        "bytes_total": float(report.bytes_total),
        "bytes_per_device": float(report.bytes_per_device),
        "devices": report.devices,
    }
    return {"columns": columns, "totals": totals}


def _joined(sizes: tuple[Any, ...]) -> str:
    shown = ("+".join(x) if isinstance(x, tuple) else "-" if x is None else str(x) for x in sizes)
    return ", ".join(shown)


# The summary ----------------------------------------------------------------------------------


def _totals_line(
    model: keras.Model, weights: int, total: int, per_device: int, devices: int
) -> str:
    dtypes = sorted({keras.backend.standardize_dtype(v.dtype) for v in model.weights})
    return (
        f"{_count(weights)} weights, {_size(total)} in {' and '.join(dtypes)}; "
        f"{_size(per_device)} on each of {devices} devices."
    )


def _count(number: int) -> str:
    for size, name in ((10**9, "billion"), (10**6, "million")):
        if number >= size:
            return f"{number / size:.2f} {name}"
    return str(number)


def _size(size: int) -> str:
    for power, name in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        # From a tenth on, so that half a MiB is not 512 KiB.
        if size >= 2**power / 10:
            return f"{size / 2**power:.{2 if power == 30 else 1}f} {name}"
    return f"{size} bytes"


def _collectives_line(
    model: keras.Model, shardings: list[Any], distribution: Any, length: int | None
) -> str:
    layer = next(_attention_layers(model), None)
    if layer is None:
        return ""
    known = dict(zip(map(id, model.weights), shardings, strict=True))
    of_layer = [known[id(variable)] for variable in layer.weights]
    try:
        probe = probe_layer(layer, of_layer, distribution, length or _length(model))
    except Exception as error:  # of Keras, JAX or XLA: the sizes are still right
        return f"Forward: not counted ({type(error).__name__}: {str(error).splitlines()[0]})."
    found = describe(probe.counts, probe.blocks)
    return f"Forward: {found} per attention block, compiled for {probe.length} tokens."


def _length(model: keras.Model) -> int | None:
    """The number of tokens of a model's first input, where it is known."""
    inputs = getattr(model, "inputs", None) or []
    shape = getattr(inputs[0], "shape", ()) if inputs else ()
    return shape[1] if len(shape) > 1 else None


def _whole_line(model: keras.Model, rows: list[Row]) -> str:
    whole = [row for row in rows if row.shape == row.shard_shape]
    if not whole or len(whole) == len(rows):
        return "" if not whole else "All weights are replicated."
    norms = {
        v.path
        for layer in flatten_layers(model)
        if "Normalization" in type(layer).__name__
        for v in layer.variables
    }
    noun = "norm" if all(row.path in norms for row in whole) else "weight"
    size = _size(sum(row.bytes_per_device for row in whole))
    return f"Replicated: {len(whole)} {noun}{'' if len(whole) == 1 else 's'} ({size})."
