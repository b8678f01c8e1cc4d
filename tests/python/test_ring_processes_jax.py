"""Ring attention over two processes of JAX with two devices each, against one process."""

import pytest

from fresh import run_processes

CODE = """
import os, sys
rank, port = int(sys.argv[1]), sys.argv[2]
import keras, numpy as np
import kerasattention as ka

ka.attention_cluster(f"127.0.0.1:{port}", 2, rank)
T = 20

def grouped(**options):
    return ka.GroupQueryAttention(4, 6, 2, use_causal_mask=True, **options)

def rotary():
    layer = grouped(position=ka.RotaryPosition(), sliding_window=9, dropout=0.2, seed=5)
    return [layer, grouped(position=ka.RotaryPosition(), attention_sink=True)]

def shared():
    first = grouped(position=ka.RotaryPosition())
    return [first, grouped(position=ka.RotaryPosition(), key_value_of=first, sliding_window=7)]

def latent():
    return [ka.LatentAttention(4, 5, 7, rotary_dim=4, value_dim=3, use_causal_mask=True)]

def build(layers):
    keras.utils.set_random_seed(2)
    tokens = keras.Input((T,), dtype="int32")
    x = keras.layers.Embedding(23, 12, mask_zero=layers is latent)(tokens)
    for layer in layers():
        x = keras.layers.Add()([x, layer(x)])
    model = keras.Model(tokens, keras.layers.Dense(23)(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.5), loss)
    return model

x = np.random.default_rng(0).integers(1, 23, (4, T))
x[1:, -3:] = 0
y = np.roll(x, -1, 1)

def numbers(model):
    fitted = model.fit(x, y, batch_size=4, epochs=3, shuffle=False, verbose=0)
    return fitted.history["loss"], model.predict(x, batch_size=4, verbose=0)

for layers in (rotary, shared, latent):
    losses, outputs = numbers(build(layers))
    for model, seq in ((1, 4), (2, 2))[: 2 if layers is rotary else 1]:
        d = ka.HeadParallel(model, seq=seq, auto_shard_dataset=False)
        with ka.with_distribution(d):
            found, predicted = numbers(build(layers))
        is_same = abs(np.subtract(found, losses)).max() < 1e-5
        predicts_same = abs(predicted - outputs).max() < 1e-4
        print(layers.__name__, seq, is_same, predicts_same, losses[-1] < losses[0])
"""


@pytest.mark.nightly
def test_two_processes_have_the_numbers_of_one(tmp_path):
    flags = "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
    ended = run_processes(CODE, tmp_path, seconds=600, XLA_FLAGS=flags, KERAS_BACKEND="jax")
    names = ("rotary 4", "rotary 2", "shared 4", "latent 4")
    expected = [f"{name} True True True" for name in names]
    for status, output, errors in ended:
        assert status == 0, errors
        assert output == expected, errors
