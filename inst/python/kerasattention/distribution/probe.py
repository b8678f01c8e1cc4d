"""Compiles two attention blocks of a model over its devices, without any weights."""

from collections import Counter
from typing import Any, NamedTuple

import keras

from kerasattention._keras import abstract_variables, set_variable_layout
from kerasattention.attend.sharing import check_ring, ring_in_force
from kerasattention.distribution.collectives import Collective, count_collectives
from kerasattention.distribution.scope import with_distribution

LONGEST = 1024  # beyond it the kernels are the same


class Probe(NamedTuple):
    """What a compiled forward pass holds."""

    counts: Counter[Collective]
    blocks: int
    length: int


def probe_layer(layer: Any, shardings: list[Any], distribution: Any, length: int | None) -> Probe:
    """Counts the collective operations of a forward pass of an attention layer.

    Args:
        layer: An attention layer that is built. It is copied.
        shardings: Those of its weights, in their order.
        distribution: The distribution.
        length: The number of tokens; that of long inputs if it is not known.
    """
    import jax

    with with_distribution(distribution):
        length = _length(length)
        with abstract_variables():
            model, blocks = _model_of(layer, length)
        # Those of the layer that was copied, whose name rules may concern.
        for variable, sharding in zip(model.weights, shardings * blocks, strict=True):
            set_variable_layout(variable, sharding)
        arguments = [_abstract(model, kind, shardings, blocks) for kind in (True, False)]
        inputs = [_abstract_input(x, distribution) for x in model.inputs]
        inputs = inputs if len(inputs) > 1 else inputs[0]

        def forward(trainable: Any, others: Any, inputs: Any) -> Any:
            return model.stateless_call(trainable, others, inputs, training=False)[0]

        program = jax.jit(forward).lower(*arguments, inputs).compile()
    return Probe(count_collectives(program.as_text() or ""), blocks, length)


def _length(length: int | None) -> int:
    """The number of tokens to compile for, of which each device of a ring has an equal part."""
    ring = ring_in_force()
    longest = LONGEST if ring is None else -(-LONGEST // ring.size) * ring.size
    length = longest if length is None else min(length, longest)
    if ring is not None:
        check_ring(ring, length, length)
    return length


def _model_of(layer: Any, length: int) -> tuple[keras.Model, int]:
    """Two layers after another; one where its output cannot be its input."""
    kernels = {v.path.split("/")[-2]: v.shape for v in layer.weights if v.path.endswith("/kernel")}
    # Keys that are used as values are of the same tokens.
    kernels = {"value": kernels["key"], **kernels}
    sizes = [kernels[name][0] for name in ("query", "value", "key")]
    inputs = [keras.Input((length, size), dtype=layer.compute_dtype) for size in sizes]
    if len(set(sizes)) > 1:
        return keras.Model(inputs, _copy(layer, 0)(*inputs)), 1
    x: Any = inputs[0]
    attended = _copy(layer, 0)(x, x)
    if attended.shape != x.shape:
        return keras.Model(x, attended), 1
    x = x + attended
    return keras.Model(inputs[0], x + _copy(layer, 1)(x, x)), 2


def _copy(layer: Any, index: int) -> Any:
    config, name = layer.get_config(), f"probe_{index}"
    policy = config.get("dtype")
    if isinstance(policy, dict) and "policy_map" in policy.get("config", {}):
        # The projections of a quantised layer have their policies by path.
        by_path = policy["config"]["policy_map"]
        renamed = {path.replace(layer.path, name, 1): of for path, of in by_path.items()}
        config["dtype"] = policy | {"config": policy["config"] | {"policy_map": renamed}}
    return type(layer).from_config({**config, "name": name})


def _abstract(model: keras.Model, trainable: bool, shardings: list[Any], blocks: int) -> list[Any]:
    """Shapes, dtypes and shardings of a model's variables; seeds are whole."""
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    known = dict(zip(map(id, model.weights), shardings * blocks, strict=True))
    whole = NamedSharding(shardings[0].mesh, PartitionSpec())
    variables = model.trainable_variables if trainable else model.non_trainable_variables
    return [
        jax.ShapeDtypeStruct(tuple(v.shape), v.dtype, sharding=known.get(id(v), whole))
        for v in variables
    ]


def _abstract_input(x: Any, distribution: Any) -> Any:
    import jax

    shape = (distribution.num_model_replicas, *x.shape[1:])
    layout = distribution.get_data_layout(shape).backend_layout
    return jax.ShapeDtypeStruct(shape, x.dtype, sharding=layout)
