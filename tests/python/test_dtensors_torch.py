"""Attention of torch's DTensors: each of two processes computes its own samples and heads."""

import keras
import pytest

from fresh import run_processes

BEGIN = """
import datetime, os, sys
rank, port = int(sys.argv[1]), sys.argv[2]
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, RANK=str(rank), WORLD_SIZE="2")
os.environ["GLOO_SOCKET_IFNAME"] = "lo"
import keras, numpy as np, torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
import kerasattention as ka

torch.set_num_threads(1)
# With a limit: where one process fails, the other would wait for it.
dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
count, all_reduce = 0, functional.all_reduce

def counted(*args, **kwargs):
    global count
    count += 1
    return all_reduce(*args, **kwargs)

functional.all_reduce = counted
"""

CALLS = """
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

mesh = init_device_mesh("cpu", (2,))
B, T, N, K, H = 4, 29, 6, 2, 5

def numbers(*shape, seed):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype("float32"))

tensors = {
    "query": numbers(B, T, N, H, seed=0),
    "key": numbers(B, T, K, H, seed=1),
    "value": numbers(B, T, K, 3, seed=2),
    "sink": numbers(N, seed=3),
    "attention_bias": numbers(B, 1, T, T, seed=4),
}
options = {
    "fused": ({"causal": True}, ("sink",)),
    "plain": ({"implementation": "plain", "dropout": 0.3, "seed": 7}, ("attention_bias", "sink")),
    "tiled": ({"implementation": "blocked", "dropout": 0.3, "seed": 7, "sliding_window": 9}, ()),
    "scores": ({"return_scores": True, "causal": True}, ("attention_bias",)),
}
heads = {"query": Shard(2), "key": Shard(2), "value": Shard(2), "sink": Shard(0)}
layouts = {
    "heads": heads,
    "query heads": {"query": Shard(2)},
    "samples": {name: Shard(0) for name in ("query", "key", "value", "attention_bias")},
    "ragged": heads | {"query": Shard(1), "key": Shard(3)},  # neither can stay so
    "whole": {},
}

def results(given, chosen):
    out = ka.scaled_dot_product_attention(**given, **options[chosen][0])
    out = out if isinstance(out, tuple) else (out,)
    out = [x.full_tensor() if isinstance(x, DTensor) else x for x in out]
    sum((x**3).sum() for x in out).backward()
    gradients = [x.grad for x in given.values()]
    return out + [x.full_tensor() if isinstance(x, DTensor) else x for x in gradients]

for chosen, (_, others) in options.items():
    names = ["query", "key", "value", *others]
    expected = results({name: tensors[name].clone().requires_grad_() for name in names}, chosen)
    for layout, placed in layouts.items():
        given = {
            name: distribute_tensor(tensors[name], mesh, [placed.get(name, Replicate())])
            for name in names
        }
        if layout == "heads":  # a tensor that is no DTensor is whole
            given |= {name: tensors[name].clone() for name in others}
        found = results({name: x.requires_grad_() for name, x in given.items()}, chosen)
        close = [torch.allclose(a, b, atol=2e-5, rtol=1e-5) for a, b in zip(found, expected)]
        print(chosen, layout, all(close))
dist.barrier()
dist.destroy_process_group()
"""


def test_calls_of_dtensors_have_the_numbers_of_whole_tensors(tmp_path):
    ended = run_processes(BEGIN + CALLS, tmp_path, KERAS_BACKEND="torch")
    kinds = ("fused", "plain", "tiled", "scores")
    layouts = ("heads", "query heads", "samples", "ragged", "whole")
    expected = [f"{kind} {layout} True" for kind in kinds for layout in layouts]
    for status, output, errors in ended:
        assert status == 0, errors
        assert output == expected, errors


MODELS = """
keras_distribution = keras.distribution
T, ROWS = 19, 8
rng = np.random.default_rng(0)
tokens = rng.integers(1, 61, (ROWS, T)).astype("int32")
targets = rng.normal(size=(ROWS, T, 1)).astype("float32")
padded = tokens.copy()
for row in range(ROWS):
    padded[row, T - 1 - row :] = 0
segments = 1 + (np.arange(T) > T // 3 + np.arange(ROWS)[:, None]).astype("int32")

def distribution(shape, key_heads):
    mesh = keras_distribution.DeviceMesh(
        shape, ("batch", "model"), keras_distribution.list_devices()
    )
    layouts = keras_distribution.LayoutMap(mesh)
    split = "query|gate|key|value" if key_heads else "query|gate"
    layouts[f".*/({split})/kernel"] = (None, "model", None)
    layouts[f".*/({split})/bias"] = ("model", None)
    layouts[".*/attention_output/kernel"] = ("model", None, None)
    layouts[".*/sink"] = ("model",)
    layouts[".*/table"] = (None, "model")
    return keras_distribution.ModelParallel(
        layout_map=layouts, batch_dim_name="batch", auto_shard_dataset=False
    )

def blocks(layers, padding=False, norm=False, **call):
    keras.utils.set_random_seed(3)
    given = [keras.Input((T,), dtype="int32")]
    if "segment_ids" in call:
        given.append(keras.Input((T,), dtype="int32"))
        call["segment_ids"] = given[1]
    normal = keras.initializers.RandomNormal(stddev=1.0)
    x = keras.layers.Embedding(61, 20, normal, mask_zero=padding)(given[0])
    for layer in layers():
        y = keras.layers.LayerNormalization()(x) if norm else x
        x = keras.layers.Add()([x, layer(y, **call)])
    model = keras.Model(given, keras.layers.Dense(1)(x))
    model.compile(keras.optimizers.SGD(0.1), "mse")
    return model

def heads(**options):
    return ka.GroupQueryAttention(6, 4, 2, use_causal_mask=True, **options)

def with_keys_of_another():
    first = heads(position=ka.RotaryPosition(), value_norm=True)
    return first, heads(position=ka.RotaryPosition(), key_value_of=first)

rotary = lambda: [
    heads(
        position=ka.RotaryPosition(), use_gate=True, scale="learned", dropout=0.3, seed=5,
        qk_norm={"after_position": True, "per_head": True}, sliding_window=7,
    )
    for _ in range(2)
]
cases = {
    "rotary": lambda: blocks(rotary),
    "normalised": lambda: blocks(rotary, norm=True),
    "padding": lambda: blocks(lambda: [heads(qk_norm=True, flash_attention=False)], padding=True),
    "segments": lambda: blocks(
        lambda: [heads(position=ka.AlibiPosition(), attention_sink=True, logit_soft_cap=5.0)],
        segment_ids=None,
    ),
    "relative": lambda: blocks(
        lambda: [heads(position=ka.RelativePosition(8, 20, name="relative"), dropout=0.2, seed=1)]
    ),
    "relative keys": lambda: blocks(
        lambda: [heads(position=ka.RelativeKeysPosition(5), mask=ka.ChunkMask(7))]
    ),
    "keys of another": lambda: blocks(with_keys_of_another),
    "latent": lambda: blocks(
        lambda: [ka.LatentAttention(4, 5, 7, rotary_dim=4, value_dim=3, use_causal_mask=True)]
    ),
}
others = {"padding": [padded], "segments": [tokens, segments]}

def trained(model, x, y):
    size = len(y)
    output = model.predict(x, batch_size=size, verbose=0)
    steps = {"batch_size": size, "epochs": 2, "shuffle": False, "verbose": 0}
    return output, np.array(model.fit(x, y, **steps).history["loss"]), *model.get_weights()

def alone(function):
    # Where processes are connected, Keras takes all of them for one batch.
    is_initialized, dist.is_initialized = dist.is_initialized, lambda: False
    try:
        return function()
    finally:
        dist.is_initialized = is_initialized

def forward(model, x):
    from torch.distributed.tensor import Replicate, distribute_tensor

    global count
    mesh = keras_distribution.distribution().device_mesh.backend_mesh
    x = [distribute_tensor(torch.from_numpy(x), mesh, [Replicate()] * 2) for x in x]
    count = 0
    with torch.no_grad():
        model(x if len(x) > 1 else x[0]).full_tensor()
    return count

for name, build in cases.items():
    x = others.get(name, [tokens])
    expected = alone(lambda: trained(build(), x, targets))
    for shape in ((1, 2), (2, 1)):
        for key_heads in (True, False) if shape == (1, 2) else (True,):
            keras_distribution.set_distribution(distribution(shape, key_heads))
            model = build()
            rows = slice(4 * rank, 4 * rank + 4) if shape == (2, 1) else slice(None)
            found = trained(model, [x[rows] for x in x], targets[rows])
            pairs = zip(found, (expected[0][rows], *expected[1:]), strict=True)
            error = max(float(np.abs(a - b).max()) for a, b in pairs)
            reduced = forward(model, x) if shape == (1, 2) else 0
            print(name, *shape, error <= 2e-5 or error, reduced)
            keras_distribution.set_distribution(None)

def message(function):
    try:
        function()
    except (RuntimeError, ValueError) as error:
        return str(error)

keras_distribution.set_distribution(distribution((1, 2), True))
model = cases["rotary"]()
print(ka.check_sharding(model))
texts = {
    "Use `keras.distribution.ModelParallel` with": lambda: ka.HeadParallel(2),
    "`check_sharding()` says whether kernels are": lambda: ka.sharding_report(model),
    "Models are not decoded on torch where": lambda: ka.generate(model, tokens[:2], 3),
}
print([text in message(function) for text, function in texts.items()])
mesh = keras_distribution.distribution().device_mesh
plain = keras_distribution.ModelParallel(layout_map=keras_distribution.LayoutMap(mesh))
keras_distribution.set_distribution(plain)
print("whole on each of 2 devices" in message(lambda: ka.check_sharding(cases["padding"]())))
with_rules = ka.attention_layout_map(mesh, 2)
keras_distribution.set_distribution(keras_distribution.ModelParallel(layout_map=with_rules))
print(ka.check_sharding(cases["padding"]()))
keras_distribution.set_distribution(None)

# NaN in a token that no other token attends to.
features = rng.normal(size=(ROWS, T, 20)).astype("float32")
features[:, -1, 3] = np.nan

def of_features():
    keras.utils.set_random_seed(3)
    given = keras.Input((T, 20))
    return keras.Model(given, heads(use_gate=True)(given))

expected = of_features().predict_on_batch(features)
keras_distribution.set_distribution(distribution((1, 2), True))
found = of_features().predict_on_batch(features)
same = np.allclose(found, expected, atol=1e-5, equal_nan=True)
print(np.isnan(expected).sum() == ROWS * 20, same)
keras_distribution.set_distribution(None)
dist.barrier()
dist.destroy_process_group()
"""

HAS_MODEL_PARALLEL = tuple(int(x) for x in keras.__version__.split(".")[:2]) >= (3, 16)


@pytest.mark.nightly
@pytest.mark.skipif(not HAS_MODEL_PARALLEL, reason="Keras 3.16 splits weights on torch")
def test_models_under_model_parallel_have_the_numbers_of_one_process(tmp_path):
    ended = run_processes(BEGIN + MODELS, tmp_path, seconds=500, KERAS_BACKEND="torch")
    blocks = {"rotary": 2, "normalised": 2, "keys of another": 2}
    names = ["rotary", "normalised", "padding", "segments", "relative", "relative keys"]
    expected = []
    for name in (*names, "keys of another", "latent"):
        reduced = blocks.get(name, 1)
        expected += [f"{name} 1 2 True {reduced}"] * 2 + [f"{name} 2 1 True 0"]
    for status, output, errors in ended:
        assert status == 0, errors
        assert output[: len(expected)] == expected, errors
        assert output[len(expected) :] == [
            "None",
            "[True, True, True]",
            "True",
            "None",
            "True True",
        ]
