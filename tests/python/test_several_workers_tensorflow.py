"""TensorFlow's strategies: several workers are refused in `fit()`, several devices of one work."""

import keras
import numpy as np
import pytest

from fresh import run_fresh
from kerasattention import MultiHeadAttention


class MultiWorkerMirroredStrategy:
    """As much of it as `fit()` is refused for."""

    def __init__(self, replicas):
        self.num_replicas_in_sync = replicas


class Model(keras.Model):
    distribute_strategy = MultiWorkerMirroredStrategy(2)


def model_of(layer):
    x = keras.Input((3, 5))
    model = Model(x, layer(x))
    model.compile("sgd", "mse")
    return model


def test_several_workers_are_refused_in_fit():
    x = np.ones((2, 3, 5), "float32")
    with pytest.raises(RuntimeError, match=r"issues/20585.*strategy\.run.*attention_cluster"):
        model_of(MultiHeadAttention(2, 3)).fit(x, x, verbose=0)


def test_other_models_and_one_worker_are_left_to_keras():
    from kerasattention.distribution.several_workers_tensorflow import check_strategy

    check_strategy(model_of(keras.layers.Dense(5)))
    model = model_of(MultiHeadAttention(2, 3))
    model.distribute_strategy = MultiWorkerMirroredStrategy(1)
    check_strategy(model)


MIRRORED = """
import keras, numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import kerasattention as ka

def build(length):
    keras.utils.set_random_seed(2)
    tokens = keras.Input((length,), dtype="int32")
    x = keras.layers.Embedding(23, 12)(tokens)
    x = ka.GroupQueryAttention(4, 6, 2, use_causal_mask=True, position=ka.RotaryPosition())(x)
    model = keras.Model(tokens, keras.layers.Dense(23)(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss)
    return model

def run(model, x, y):
    before = model.predict(x, batch_size=4, verbose=0)
    loss = model.fit(x, y, batch_size=4, shuffle=False, verbose=0).history["loss"][0]
    return [before, np.array(loss), *model.get_weights()]

strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
for length in (16, 600):
    x = np.random.default_rng(0).integers(0, 23, (4, length))
    y = np.roll(x, -1, 1)
    alone = run(build(length), x, y)
    with strategy.scope():
        model = build(length)
    mirrored = run(model, x, y)
    print(max(float(np.abs(a - b).max()) for a, b in zip(alone, mirrored)) <= 1e-5)

alone = build(None)
with strategy.scope():
    model = build(None)
prompt = np.array([[3, 7, 11], [5, 2, 19]])
print(np.array_equal(ka.generate(alone, prompt, 5), ka.generate(model, prompt, 5)))
"""


def test_mirrored_devices_give_the_numbers_of_one(tmp_path):
    lines, _ = run_fresh(MIRRORED, tmp_path, KERAS_BACKEND="tensorflow")
    assert lines == ["True"] * 3
