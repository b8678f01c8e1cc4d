"""Small models under distributions of 8 simulated devices, for `test_sharded_jax.py`.

Imported in a process in which JAX has 8 devices.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import keras
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import kerasattention as ka
from collectives import count_collectives, trip_counts
from kerasattention.attend import api, registry
from kerasattention.attend.kernels.jax import tiled

VOCABULARY, WIDTH, SIZE = 61, 32, 8


# Distributions ---------------------------------------------------------------------------


def data_parallel():
    return keras.distribution.DataParallel()


def model_parallel(batch, model, key_heads=True, **layouts_of_others):
    """Heads over one axis, with names of its own; K whole where `key_heads` is not set."""
    mesh = keras.distribution.DeviceMesh((batch, model), ["rows", "cols"])
    layouts = keras.distribution.LayoutMap(mesh)
    split = "query|gate" + ("|key|value" if key_heads else "")
    layouts[f".*/({split})/kernel"] = (None, "cols", None)
    layouts[f".*/({split})/bias"] = ("cols", None)
    layouts[".*/attention_output/kernel"] = ("cols", None, None)
    layouts[".*/sink"] = ("cols",)
    layouts[".*/table"] = (None, "cols")
    for pattern, axes in layouts_of_others.items():
        layouts[pattern] = axes
    return keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name="rows")


def features_split():
    """A kernel split by its features, not by its heads: it needs more collectives."""
    mesh = keras.distribution.DeviceMesh((2, 4), ["rows", "cols"])
    layouts = keras.distribution.LayoutMap(mesh)
    layouts[".*/(query|key|value)/kernel"] = ("cols", None, None)
    return keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name="rows")


class HeadParallel(keras.distribution.ModelParallel):
    """Heads over two axes: N over both, K over the first."""

    def __init__(self, batch, kv, rep):
        names = ["batch", "seq", "model_kv", "model_rep"]
        mesh = keras.distribution.DeviceMesh((batch, 1, kv, rep), names)
        super().__init__(layout_map=keras.distribution.LayoutMap(mesh), batch_dim_name="batch")

    def get_variable_layout(self, variable):
        parts, both, kv = variable.path.split("/"), ("model_kv", "model_rep"), "model_kv"
        owner, kind = parts[-2], parts[-1]
        heads = both if owner in ("query", "gate", "attention_output") else kv
        axes = ()
        if owner in ("query", "gate", "key", "value"):
            axes = {"kernel": (None, heads, None), "bias": (heads, None)}.get(kind, ())
        elif owner == "attention_output" and kind == "kernel":
            axes = (both, None, None)
        elif kind in ("sink", "table"):
            axes = (both,) if kind == "sink" else (None, both)
        return NamedSharding(self.device_mesh.backend_mesh, PartitionSpec(*axes))


# Models ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Case:
    """A model with one attention layer under a distribution.

    `tiles` makes tiles of 8 x 8, `accelerator` takes the kernel that accelerators have, `unshared`
    leaves all to XLA.
    """

    distribution: Callable[[], Any]
    length: int = 1024
    batch: int = 8
    heads: int = 8
    key_heads: int = 8
    options: Callable[[], dict[str, Any]] = dict
    padding: bool = False
    segments: bool = False
    tiles: bool = False
    accelerator: bool = False
    unshared: bool = False


def build(case):
    keras.utils.set_random_seed(7)
    x = tokens = keras.Input((case.length,), dtype="int32")
    inputs, call = [tokens], {"use_causal_mask": True}
    if case.segments:
        call["segment_ids"] = keras.Input((case.length,), dtype="int32")
        inputs.append(call["segment_ids"])
    # Large enough that weights of attention and their gradients are far from uniform.
    scale = keras.initializers.RandomNormal(stddev=1.0)
    x = keras.layers.Embedding(VOCABULARY, WIDTH, scale, mask_zero=case.padding, name="tokens")(x)
    options = {"name": "attn"} | case.options()
    if case.tiles or case.accelerator:  # short sequences would take the plain kernel
        options["flash_attention"] = True
    y = ka.GroupQueryAttention(SIZE, case.heads, case.key_heads, **options)(x, **call)
    y = keras.layers.Add()([x, y])
    model = keras.Model(inputs, keras.layers.Dense(1, name="head")(y))
    model.compile(optimizer=keras.optimizers.SGD(0.5), loss="mse")
    return model


def data(case):
    numbers = np.random.default_rng(3)
    x = numbers.integers(1, VOCABULARY, (case.batch, case.length)).astype("int32")
    y = numbers.normal(size=(case.batch, case.length, 1)).astype("float32")
    rows = range(case.batch)
    if case.padding:
        for row in rows:
            x[row, case.length - 2 - row :] = 0
    if not case.segments:
        return [x], y
    segments = np.ones_like(x)
    for row in rows:
        segments[row, case.length // 3 + row :] = 2
        segments[row, case.length - 1 - row :] = 0
    return [x, segments], y


@contextlib.contextmanager
def kernels_of(case):
    """The tiles and the device of a case."""
    choose, device, find = tiled.choose_tile_size, registry._device, api.find_share
    if case.tiles:
        tiled.choose_tile_size = functools.partial(
            lambda inputs, block_size: choose(inputs, 8, 8, 8 * 8 * 4)
        )
    if case.accelerator:
        registry._device = lambda inputs, backend: "gpu"
    if case.unshared:
        api.find_share = lambda *given: None
    jax.clear_caches()
    try:
        yield
    finally:
        tiled.choose_tile_size, registry._device, api.find_share = choose, device, find
        keras.distribution.set_distribution(None)


def compiled(case, train):
    """The forward pass or one step of training, compiled; the loss has no mask."""
    distribution = case.distribution()
    keras.distribution.set_distribution(distribution)
    model = build(case)
    inputs, y = data(case)

    def put(x):
        layout = distribution.get_data_layout(x.shape)
        return jax.device_put(x, getattr(layout, "backend_layout", layout))

    inputs, y = [put(x) for x in inputs], put(y)
    state = [v.value for v in model.trainable_variables]
    fixed = [v.value for v in model.non_trainable_variables]

    def forward(state, fixed, inputs, training=False):
        return model.stateless_call(state, fixed, inputs, training=training)

    if not train:
        return jax.jit(lambda *given: forward(*given)[0]).lower(state, fixed, inputs).compile()
    model.optimizer.build(model.trainable_variables)
    slots = [v.value for v in model.optimizer.variables]

    def step(state, fixed, slots, inputs, y):
        def loss(state):
            output, changed = forward(state, fixed, inputs, training=True)
            return jax.numpy.mean((output - y) ** 2), changed

        (value, changed), gradients = jax.value_and_grad(loss, has_aux=True)(state)
        return value, changed, *model.optimizer.stateless_apply(slots, gradients, state)

    shardings = [[x.sharding for x in given] for given in (fixed, state, slots)]
    function = jax.jit(step, out_shardings=(None, *shardings))
    return function.lower(state, fixed, slots, inputs, y).compile()


def counted(case):
    """Collectives and trips of loops, of the forward pass and of a step of training."""
    found = {}
    with kernels_of(case):
        for name, train in (("forward", False), ("train", True)):
            text = compiled(case, train).as_text()
            found[name] = count_collectives(text)
            found[f"{name} trips"] = trip_counts(text)
    return found


def trained(case, distribution):
    """Outputs, losses and weights of two steps."""
    keras.distribution.set_distribution(distribution)
    model = build(case)
    x, y = data(case)
    output = model.predict(x, batch_size=case.batch, verbose=0)
    steps = {"batch_size": case.batch, "epochs": 2, "shuffle": False, "verbose": 0}
    losses = model.fit(x, y, **steps).history["loss"]
    return output, np.array(losses), *model.get_weights()


def compared(case):
    """The largest differences between the sharded and the unsharded model."""
    with kernels_of(case):
        sharded = trained(case, case.distribution())
        jax.clear_caches()
        whole = trained(case, None)
    names = ["output", "losses", *[f"weight {i}" for i in range(len(whole) - 2)]]
    return {
        name: float(np.abs(a.astype("float64") - b).max(initial=0.0))
        for name, a, b in zip(names, sharded, whole, strict=True)
    }
