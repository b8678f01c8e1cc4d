"""Two processes of torch: `DistributedDataParallel` works, `fully_shard()` is refused."""

from fresh import run_processes

CODE = """
import os, sys, warnings
rank, port = int(sys.argv[1]), sys.argv[2]
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, RANK=str(rank), WORLD_SIZE="2")
os.environ["GLOO_SOCKET_IFNAME"] = "lo"
import keras, numpy as np, torch
import torch.distributed as dist
import kerasattention as ka
from torch.nn.parallel import DistributedDataParallel

torch.set_num_threads(1)
dist.init_process_group("gloo")

def build():
    keras.utils.set_random_seed(2)
    tokens = keras.Input((7,), dtype="int32")
    x = keras.layers.Embedding(23, 12)(tokens)
    x = ka.GroupQueryAttention(4, 6, 2, use_causal_mask=True, position=ka.RotaryPosition())(x)
    return keras.Model(tokens, keras.layers.Dense(23)(x))

x = torch.from_numpy(np.random.default_rng(0).integers(0, 23, (8, 7)))
y = torch.roll(x, -1, 1)

def train(model, called, x, y):
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    for _ in range(3):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(called(x).flatten(0, 1), y.flatten())
        loss.backward()
        optimizer.step()
    return [variable.numpy() for variable in model.weights]

alone = build()
expected = train(alone, alone, x, y)
model = build()
rows = slice(4 * rank, 4 * rank + 4)
found = train(model, DistributedDataParallel(model), x[rows], y[rows])
error = max(float(np.abs(a - b).max()) for a, b in zip(expected, found))
moved = max(float(np.abs(a - b.numpy()).max()) for a, b in zip(expected, build().weights))
print(error <= 1e-5 < 1e-2 < moved)

from torch.distributed.fsdp import fully_shard

for parts in (False, True):
    model = build()
    if parts:
        for layer in model.layers[1:]:
            fully_shard(layer)
    fully_shard(model)
    try:
        train(model, model, x[rows], y[rows])
        print("trained")
    except RuntimeError as raised:
        print("do not follow fully_shard(); use Dist" in str(raised))
dist.destroy_process_group()
"""


def test_two_processes(tmp_path):
    ended = run_processes(CODE, tmp_path, KERAS_BACKEND="torch")
    for status, output, errors in ended:
        assert status == 0, errors
        assert output == ["True"] * 3, errors
