"""The options of the layers under `HeadParallel`, in a process in which JAX has 8 devices.

Run as a program by `test_sharded_options_jax.py`; prints a line of JSON for each option: the
collectives of the forward pass and of a step of training, and the largest differences of outputs
and gradients from those of one device. T = 1024, so that the kernels are those of long sequences.
"""

import json
import sys
import time
import traceback

import jax
import keras
import numpy as np

import kerasattention as ka
from collectives import count_collectives

B, T, WIDTH, N, K, H = 4, 1024, 24, 8, 2, 6
WORDS = 61


def rotary():
    return ka.RotaryPosition()


def relative_keys(kind):
    # Kinds that see the key need as many key/value heads as query heads.
    heads = {"heads": N} if kind in ("huang", "deberta") else {}
    return {"position": ka.RelativeKeysPosition(9, kind, name="relative"), **heads}


def normed(**options):
    return {"qk_norm": options, "position": rotary()}


# Options of the layer, made anew for each model; beside them the key/value heads and how the layer
# is called.
OPTIONS = {
    "plain": dict,
    "one key/value head": lambda: {"heads": 1},
    "window": lambda: {"sliding_window": 300},
    "padding": lambda: {"call": "padding"},
    "segments": lambda: {"call": "segments"},
    "bidirectional": lambda: {"call": "bidirectional", "sliding_window": 200},
    "attention_mask": lambda: {"call": "attention_mask"},
    "attention_bias": lambda: {"call": "attention_bias"},
    "rotary": lambda: {"position": rotary()},
    "positions": lambda: {"position": rotary(), "call": "positions"},
    "sections": lambda: {"position": ka.RotaryPosition(sections=(1, 2)), "call": "sections"},
    "alibi": lambda: {"position": ka.AlibiPosition()},
    "relative": lambda: {"position": ka.RelativePosition(16, 40, name="relative")},
    "relative grid": lambda: {
        "position": ka.RelativePosition(max_distance=9, axes=2, name="relative"),
        "call": "sections",
    },
    "relative grid, class token": lambda: {
        "position": ka.RelativePosition(max_distance=9, axes=2, class_token=True, name="relative"),
        "call": "sections",
    },
    "relative keys": lambda: relative_keys("shaw"),
    "relative keys, transformer_xl": lambda: relative_keys("transformer_xl"),
    "relative keys, huang": lambda: relative_keys("huang"),
    "relative keys, deberta": lambda: relative_keys("deberta"),
    "sink": lambda: {"attention_sink": True},
    "gate": lambda: {"use_gate": True},
    "gate of heads": lambda: {"use_gate": "head"},
    "norm": lambda: {"qk_norm": True},
    "norm, layer": lambda: normed(type="layer", bias=True),
    "norm, l2": lambda: normed(type="l2", after_position=True),
    "norm, per head": lambda: normed(per_head=True),
    "norm, offset": lambda: normed(offset=1.0),
    "value norm": lambda: {"value_norm": True},
    "scale": lambda: {"scale": "learned"},
    "query scale": lambda: {
        "query_scale": ka.ScaleByPosition("llama4", attn_scale=0.1, floor_scale=100)
    },
    "cap": lambda: {"logit_soft_cap": 5.0},
    "dropout": lambda: {"dropout": 0.3, "seed": 11},
    "rules": lambda: {"mask": ka.ChunkMask(300) | ka.PrefixMask(3)},
    "key_value_of": lambda: {"second": True, "position": rotary()},
    "latent": lambda: {"latent": True},
    "latent, query rank": lambda: {"latent": True, "query_rank": 7, "use_bias": True},
    # Its norm is of all heads together: one number of each token from each device.
    "norm over the width": lambda: normed(over="width"),
}


def called(name, inputs):
    """The arguments of a call with an input of the model."""
    if name in (None, "padding"):
        return {}
    shapes = {"sections": (T, 2), "attention_mask": (N, T, T), "attention_bias": (N, T, T)}
    dtypes = {"attention_mask": "bool", "attention_bias": "float32"}
    given = keras.Input(shapes.get(name, (T,)), dtype=dtypes.get(name, "int32"))
    inputs.append(given)
    return {{"segments": "segment_ids", "sections": "positions"}.get(name, name): given}


def build(options):
    keras.utils.set_random_seed(7)
    options = dict(options)
    heads, call = options.pop("heads", K), options.pop("call", None)
    second, latent = options.pop("second", False), options.pop("latent", False)
    tokens = keras.Input((T,), dtype="int32")
    inputs = [tokens]
    scale = keras.initializers.RandomNormal(stddev=1.0)
    x = keras.layers.Embedding(WORDS, WIDTH, scale, mask_zero=call == "padding")(tokens)
    arguments = {"use_causal_mask": True, **called(call, inputs)}
    if latent:
        layer = ka.LatentAttention(N, H, 5, rotary_dim=4, value_dim=3, name="attn", **options)
    else:
        layer = ka.GroupQueryAttention(H, N, heads, name="attn", **options)
    y = keras.layers.Add()([x, layer(x, **arguments)])
    if second:
        other = ka.GroupQueryAttention(H, N, heads, name="other", key_value_of=layer, **options)
        y = keras.layers.Add()([y, other(y, **arguments)])
    return keras.Model(inputs, keras.layers.Dense(1, name="head")(y))


def data(options):
    numbers = np.random.default_rng(3)
    x = numbers.integers(1, WORDS, (B, T)).astype("int32")
    rows = np.arange(B)[:, None]
    call = options.get("call")
    if call == "padding":
        x[np.arange(T) >= T - 2 - rows] = 0
    others = {
        "segments": lambda: 1 + (np.arange(T) >= T // 3 + rows).astype("int32"),
        "bidirectional": lambda: np.where(abs(np.arange(T) - 500 - rows) < 70, 1, 0),
        "positions": lambda: np.arange(T) // 2 + rows,
        "sections": lambda: np.stack([np.arange(T) // 32 + rows, np.arange(T) % 32 + rows], -1),
        "attention_mask": lambda: numbers.normal(size=(B, N, T, T)) > -0.5,
        "attention_bias": lambda: numbers.normal(size=(B, N, T, T)).astype("float32"),
    }
    given = [x] + ([np.asarray(others[call]())] if call in others else [])
    given = [x if x.dtype in (bool, "float32") else x.astype("int32") for x in given]
    return given, numbers.normal(size=(B, T, 1)).astype("float32")


def step(options, distribution):
    """Compiled: the forward pass; outputs and gradients of a step of training; its arguments."""
    keras.distribution.set_distribution(distribution)
    model = build(options)
    inputs, y = data(options)
    if distribution is not None:

        def put(x):
            layout = distribution.get_data_layout(x.shape)
            return jax.device_put(x, getattr(layout, "backend_layout", layout))

        inputs, y = [put(x) for x in inputs], put(y)
    state = [v.value for v in model.trainable_variables]
    fixed = [v.value for v in model.non_trainable_variables]

    def train(state, fixed, inputs, y):
        def loss(state):
            output, changed = model.stateless_call(state, fixed, inputs, training=True)
            return jax.numpy.sum((output - y) ** 2) / B, (output, changed)

        return jax.value_and_grad(loss, has_aux=True)(state)

    def forward(state, fixed, inputs):
        return model.stateless_call(state, fixed, inputs, training=False)[0]

    placed = None
    if distribution is not None:
        whole = [x.sharding for x in state]
        placed = ((None, (None, [x.sharding for x in fixed])), whole)
    trained = jax.jit(train, out_shardings=placed).lower(state, fixed, inputs, y).compile()
    (_, (output, _)), gradients = trained(state, fixed, inputs, y)
    results = [np.asarray(x) for x in (output, *gradients)]
    if distribution is None:
        return results, {}
    # Gradients as an optimizer uses them lie where their weights do.
    programs = {"forward": jax.jit(forward).lower(state, fixed, inputs).compile(), "train": trained}
    return results, {name: count_collectives(x.as_text()) for name, x in programs.items()}


def compared(make):
    sharded, counts = step(make(), ka.HeadParallel(4))
    jax.clear_caches()
    whole, _ = step(make(), None)
    output, *gradients = (
        float(np.abs(a - b).max() / max(1.0, np.abs(b).max()))
        for a, b in zip(sharded, whole, strict=True)
    )
    return {**counts, "output": output, "gradients": max(gradients)}


def main(names):
    for name, make in OPTIONS.items():
        if names and name not in names:
            continue
        began = time.time()
        try:
            found = compared(make)
        except Exception:
            found = {"error": traceback.format_exc()}
        finally:
            keras.distribution.set_distribution(None)
        print(f"{name}: {time.time() - began:.1f} s", file=sys.stderr)
        print(json.dumps([name, found]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
