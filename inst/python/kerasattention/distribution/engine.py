"""What runs distributed models: JAX, and torch in part. Refuses where Keras would do nothing."""

import math
import os
from typing import Any

import keras

from kerasattention import checks

_WAY_OUT = {
    "tensorflow": "Use `tf.distribute.MirroredStrategy`",
    "torch": "Use torch's `DistributedDataParallel`",
}
_MODEL_PARALLEL = (
    "Use `keras.distribution.ModelParallel` with the rules of `attention_layout_map()`"
)


def check_backend(what: str, on_torch: str = _MODEL_PARALLEL) -> None:
    """Refuses all backends but JAX.

    Args:
        what: The function's name in backticks.
        on_torch: What to do instead where torch can split weights.
    """
    backend = keras.backend.backend()
    if backend == "jax":
        return
    text = f"{what} needs the JAX backend."
    way_out = _WAY_OUT.get(backend, "Use JAX")
    if _splits_weights_on_torch():
        way_out = on_torch
    else:
        text += (
            f" On {backend}, Keras {keras.__version__} would train the model on one device without "
            "a word."
        )
    raise RuntimeError(f'{text} {way_out}, or set KERAS_BACKEND="jax" before Keras is loaded.')


def check_layouts(what: str) -> None:
    """Refuses backends on which the layouts of `keras.distribution` have no effect."""
    if not _splits_weights_on_torch():
        check_backend(what)


def _splits_weights_on_torch() -> bool:
    major, minor = (int(part) for part in keras.__version__.split(".")[:2])
    return keras.backend.backend() == "torch" and (major, minor) >= (3, 16)


def check_distribution(distribution: Any) -> None:
    """Refuses what is no distribution, and backends that ignore one."""
    if not hasattr(distribution, "get_variable_layout"):
        raise ValueError(
            "`distribution` must be a distribution, such as `HeadParallel(model=8)` or "
            f"`keras.distribution.DataParallel()`. Received: {type(distribution).__name__}"
        )
    check_layouts("`with_distribution()`")


def mesh_sizes(model: int, batch: int | None, seq: int) -> tuple[int, int, int]:
    """The sizes (batch, seq, model) of a mesh of all devices.

    Raises:
        ValueError: Sizes that are not those of the devices.
    """
    checks.positive_integer("model", model)
    checks.optional_positive_integer("batch", batch)
    checks.positive_integer("seq", seq)
    devices = keras.distribution.list_devices()
    count, part = len(devices), model * seq
    if batch is None and count >= part and count % part == 0:
        batch = count // part
    if batch is None or batch * part != count:
        sizes = {"batch": batch, "seq": seq, "model": model}
        asked = ", ".join(
            f"{k} = {v}" for k, v in sizes.items() if v not in (None, 1) or k == "model"
        )
        needed = part if batch is None else batch * part
        more = " or a multiple" if batch is None else ""
        raise ValueError(_wrong_count(f"{asked} needs {needed} devices{more}", needed, devices))
    return batch, seq, model


def _wrong_count(asked: str, needed: int, devices: list[str]) -> str:
    shown = ", ".join(devices[:4]) + (", ..." if len(devices) > 4 else "")
    message = f"{asked}. JAX has {len(devices)}: {shown}."
    if devices[0].startswith("cpu"):
        flag = f"--xla_force_host_platform_device_count={needed}"
        message += (
            f' A CPU simulates {needed} devices with XLA_FLAGS="{flag}", set before JAX is loaded; '
            f'here JAX is loaded already, with XLA_FLAGS="{os.environ.get("XLA_FLAGS", "")}": '
            "restart the session."
        )
    return message


def batch_shards(distribution: Any) -> int:
    """The number of parts that each batch of this process is split into."""
    return max(1, distribution.num_model_replicas // distribution.num_processes)


def number_of_devices(distribution: Any) -> int:
    return math.prod(distribution.device_mesh.shape)
