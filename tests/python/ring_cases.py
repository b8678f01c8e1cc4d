"""What `test_ring_jax.py` looks at, computed in a process in which JAX has 8 devices.

Run as a program; prints a line of JSON for each case: its group, its name and what was found.
"""

import contextlib
import functools
import json
import sys
import time
import traceback

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import kerasattention as ka
import sharded_models
from collectives import count_collectives
from kerasattention.attend import api
from kerasattention.attend.kernels.jax import ring_parts
from kerasattention.attend.mask import AttentionMask
from kerasattention.attend.sharing import ring_in_force
from kerasattention.masks.join import rule_fields
from sharded_behaviour import numbers, on_and_off
from sharded_models import Case

B, N, K, H, HV, D = 2, 8, 2, 4, 3, 12
T = 40


def ring(batch, seq, model=1):
    return lambda: ka.HeadParallel(model, batch=batch, seq=seq, num_key_value_heads=K)


# Functions: outputs and gradients against one device -----------------------------------------


def segments(length):
    found = np.ones((B, length), "int32")
    found[0, length // 3 :], found[1, length // 2 + 1 :] = 2, 0
    return jnp.asarray(found)


def padding(length):
    """Some blocks have no key at all, of the first sample even its first ones."""
    real = np.ones((B, length), bool)
    real[0, : length // 2 + 1], real[1, length - length // 3 :] = False, False
    return jnp.asarray(real)


def mask_of(kind, length):
    real, of_segments = padding(length), segments(length)
    positions = jnp.asarray(np.cumsum(np.abs(numbers(B, length, seed=6)), axis=1))
    masks = {
        "full": {},
        "causal": {"causal": True},
        "window": {"causal": True, "window": 7},
        "both sides": {"window": 6},
        "padding": {"causal": True, "key_mask": real, "query_mask": real},
        "segments": {"query_segments": of_segments, "key_segments": of_segments, "window": 13},
        "positions": {"causal": True, "query_positions": positions, "key_positions": positions},
        "spans": {
            **rule_fields(ka.ChunkMask(11), True, None),
            "query_bidirectional": of_segments - 1,
            "key_bidirectional": of_segments - 1,
        },
        "rules": rule_fields(ka.ChunkMask(11) | ka.PrefixMask(3), True, None),
    }
    return AttentionMask(**masks[kind])


def attended(kind, distribution, length=T, dtype="float32", accelerator=False, **options):
    """The largest differences of the output and each gradient from those of one device."""
    named = {
        "query": numbers(B, length, N, H),
        "key": numbers(B, length, K, H, seed=1),
        "value": numbers(B, length, K, HV, seed=2),
    }
    named = {name: x.astype(dtype) for name, x in named.items()}
    if options.pop("sink", False):
        named["sink"] = np.linspace(-1.0, 1.0, N).astype("float32")
    position = options.pop("position", None)
    if position is not None and hasattr(position, "table"):
        named["table"] = numbers(*position.table.shape, seed=4)
    along = numbers(B, length, N, HV, seed=3)

    def total(named):
        named, biases = dict(named), []
        if position is not None:
            bias = position.block_bias(N, False)
            table = named.pop("table", None)
            biases = [bias if table is None else bias.with_tensors({"table": table})]
        output = api.attend(
            **named,
            mask=mask_of(kind, length),
            biases=biases,
            head_axes=api.HeadAxes(("model_kv", "model_rep"), ("model_kv",)),
            ring=ring_in_force(),
            **options,
        )
        return jnp.sum(output.astype("float32") * along), output

    function = jax.jit(jax.grad(total, has_aux=True))
    with accelerated() if accelerator else contextlib.nullcontext():
        found = on_and_off(lambda: function(named), distribution())
    names = [*sorted(named), "output"]
    return dict(zip(names, found.values(), strict=True))


@contextlib.contextmanager
def accelerated():
    """The parts of a ring as accelerators compute them."""
    before, ring_parts.on_cpu = ring_parts.on_cpu, lambda: False
    try:
        yield
    finally:
        ring_parts.on_cpu = before


def relative():
    position = ka.RelativePosition(8, 11)
    position.prepare(N, H)
    return position


ATTENDED = {
    "causal 1x8": lambda: attended("causal", ring(1, 8)),
    "full 2x4, sink, cap": lambda: attended("full", ring(2, 4), sink=True, soft_cap=3.0),
    "window 1x8, dropout": lambda: attended("window", ring(1, 8), rate=0.3, seed=5),
    "both sides 1x8, bfloat16": lambda: attended("both sides", ring(1, 8), dtype="bfloat16"),
    "padding 2x2x2, alibi, dropout, sink": lambda: attended(
        *("padding", ring(2, 2, 2)), position=ka.AlibiPosition(), rate=0.2, seed=7, sink=True
    ),
    "segments 1x4x2, relative": lambda: attended("segments", ring(1, 4, 2), position=relative()),
    "positions 2x4, alibi": lambda: attended("positions", ring(2, 4), position=ka.AlibiPosition()),
    "rules 2x4": lambda: attended("rules", ring(2, 4), rate=0.1, seed=2),
    "spans 4x2": lambda: attended("spans", ring(4, 2)),
    "tiles 4x2": lambda: attended("causal", ring(4, 2), length=1042),
    # Some blocks of two queries see no key of a step.
    "accelerator 1x8": lambda: attended("window", ring(1, 8), accelerator=True, block_size=2),
}


# Layers and models ---------------------------------------------------------------------------


def all_options():
    return {
        "attention_sink": True,
        "position": ka.RotaryPosition(),
        "dropout": 0.3,
        "seed": 11,
        "use_gate": True,
        "qk_norm": True,
        "sliding_window": 9,
    }


def relative_options():
    return {"position": ka.RelativePosition(16, 20, name="relative"), "attention_sink": True}


TRAINED = {
    "all 2x2x2": Case(ring(2, 2, 2), 48, 4, key_heads=K, options=all_options, segments=True),
}
COUNTED = {
    "causal 1x8": Case(ring(1, 8), 1024, 2, key_heads=K),
    "segments 2x2x2": Case(
        ring(2, 2, 2), 1024, 2, key_heads=K, options=relative_options, segments=True
    ),
}


def counted(case):
    with sharded_models.kernels_of(case):
        return {
            name: count_collectives(sharded_models.compiled(case, train).as_text())
            for name, train in (("forward", False), ("train", True))
            if not (train and case.segments)
        }


def memory():
    """Temporary memory of a device in MiB, forward and of the gradient, for 1 to 8 devices."""
    found = {}
    for size in (1, 2, 4, 8):
        mesh = keras.distribution.DeviceMesh(
            (1, size), ["batch", "seq"], [f"cpu:{index}" for index in range(size)]
        )
        layouts = keras.distribution.LayoutMap(mesh)
        distribution = keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name="batch")
        distribution.seq_axis = "seq"
        keras.distribution.set_distribution(distribution)
        sharding = NamedSharding(mesh.backend_mesh, PartitionSpec(None, "seq"))
        shapes = [
            jax.ShapeDtypeStruct((1, 16384, heads, 64), "float32", sharding=sharding)
            for heads in (8, 2, 2)
        ]
        mask = AttentionMask(causal=True)
        function = functools.partial(api.attend, mask=mask, ring=ring_in_force())
        gradient = jax.grad(lambda *x: jnp.sum(function(*x) ** 2), (0, 1, 2))  # noqa: B023
        programs = (jax.jit(f).lower(*shapes).compile() for f in (function, gradient))
        sizes = [program.memory_analysis().temp_size_in_bytes / 2**20 for program in programs]
        found[str(size)] = sizes
    keras.distribution.set_distribution(None)
    return found


def layer_of(**options):
    keras.utils.set_random_seed(5)
    layer = ka.GroupQueryAttention(H, N, K, name="attn", **options)
    layer.build((None, None, D))
    return layer


def not_finite():
    """NaN in a masked-out token has no effect; others poison the same rows and gradients."""
    x = numbers(B, T, D)
    x[1, T - 1], x[0, 3], x[0, 35, 2] = np.nan, np.inf, np.nan
    real = np.ones((B, T), "bool")
    real[1, T - 2 :] = False

    def function():
        layer = layer_of(sliding_window=9)

        def total(x, state):
            output = layer.stateless_call(state, [], x, query_mask=real, use_causal_mask=True)[0]
            return jnp.sum(output[1] ** 2) + jnp.sum(output[0, 20:30] ** 2), output

        state = [v.value for v in layer.trainable_variables]
        return jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(x, state)

    return on_and_off(function, ring(1, 8)())


def second_derivatives():
    x = numbers(B, T, D)

    def function():
        layer = layer_of(position=ka.RotaryPosition(), attention_sink=True)
        along = numbers(B, T, D, seed=9)

        def total(x):
            return jnp.sum(layer(x, use_causal_mask=True) ** 3)

        return jax.jit(jax.grad(lambda x: jnp.sum(jax.grad(total)(x) * along)))(x)

    return on_and_off(function, ring(2, 4)())


def eager_and_cross():
    """Without `jit()`, forced kernels, cross-attention of one length, and weights to look at."""
    x, y = numbers(B, T, D), numbers(B, T, D, seed=8)

    def function():
        layer, tokens = layer_of(), keras.Input((T, D))
        model = keras.Model(tokens, layer(tokens))
        scores = ka.attention_scores(model, x)
        keras.utils.set_random_seed(5)
        latent = ka.LatentAttention(4, 3, kv_rank=5, rotary_dim=2)
        latent.build((None, None, D))
        return (
            jax.jit(latent)(x),
            layer(x, use_causal_mask=True),
            jax.jit(layer)(x, y),
            jax.jit(layer_of(flash_attention=False))(x),
            scores[0].weights,
        )

    return on_and_off(function, ring(1, 8)())


def refused():
    """What is an error, by name, when a model is built."""
    masks = np.ones((B, T, T), bool)
    found = {}
    calls = {
        "attention_mask": lambda x: layer_of()(x, attention_mask=masks),
        "attention_bias": lambda x: layer_of()(x, attention_bias=masks.astype("float32")),
        "return_attention_scores": lambda x: layer_of()(x, return_attention_scores=True),
        "length": lambda x: layer_of()(x[:, :37]),
        "cross": lambda x: layer_of()(x, x[:, :32]),
        "keys": lambda x: layer_of(position=ka.RelativeKeysPosition(5))(x),
        "grid": lambda x: layer_of(position=ka.RelativePosition(max_distance=5, axes=2))(
            x, positions=np.zeros((B, T, 2), "int32")
        ),
        "axes": lambda x: ka.MultiHeadAttention(N, H, attention_axes=(2,))(x[:, None]),
    }
    keras.distribution.set_distribution(ring(1, 8)())
    tokens = keras.Input((T,), dtype="int32")
    hidden = keras.layers.Embedding(61, D)(tokens)
    hidden = layer_of()(hidden, use_causal_mask=True)
    model = keras.Model(tokens, keras.layers.Dense(61)(hidden))
    calls["symbolic length"] = lambda x: layer_of()(keras.Input((37, D)))
    calls["decoding"] = lambda x: ka.generate(model, [1, 2, 3], 4)
    for name, call in calls.items():
        try:
            call(jnp.asarray(numbers(B, T, D)))
            found[name] = "nothing"
        except ValueError as error:
            found[name] = str(error)
    keras.distribution.set_distribution(None)
    try:
        found["decoded outside"] = [int(token) for token in ka.generate(model, [1, 2, 3], 4)]
    except Exception as error:
        found["decoded outside"] = str(error)
    return found


BEHAVIOUR = {
    function.__name__.replace("_", " "): function
    for function in (memory, not_finite, second_derivatives, eager_and_cross, refused)
}

GROUPS = (
    ("attend", lambda function: function(), ATTENDED),
    ("train", sharded_models.compared, TRAINED),
    ("count", counted, COUNTED),
    ("behaviour", lambda function: function(), BEHAVIOUR),
)


def main(names):
    for group, function, cases in GROUPS:
        for name, case in cases.items():
            if names and name not in names and group not in names:
                continue
            began = time.time()
            try:
                found = function(case)
            except Exception:
                found = {"error": traceback.format_exc()}
            print(f"{name}: {time.time() - began:.1f} s", file=sys.stderr)
            print(json.dumps([group, name, found]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
