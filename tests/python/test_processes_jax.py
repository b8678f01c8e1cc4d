"""Two processes of JAX with two devices each, against one process."""

import pytest

import kerasattention as ka
from fresh import run_processes, xla_flags

CODE = """
import os, sys
rank, port, folder = int(sys.argv[1]), sys.argv[2], os.environ["FOLDER"]
import keras, numpy as np
import kerasattention as ka

ka.attention_cluster(f"127.0.0.1:{port}", 2, rank)
import jax

def build():
    keras.utils.set_random_seed(2)
    tokens = keras.Input((7,), dtype="int32")
    x = keras.layers.Embedding(23, 12)(tokens)
    x = ka.GroupQueryAttention(4, 8, 2, use_causal_mask=True, position=ka.RotaryPosition())(x)
    model = keras.Model(tokens, keras.layers.Dense(23)(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.05), loss)
    return model

x = np.random.default_rng(0).integers(0, 23, (17, 7))
y = np.roll(x, -1, 1)

def losses(model, x, y, size):
    return model.fit(x, y, batch_size=size, epochs=2, shuffle=False, verbose=0).history["loss"]

alone = build()
expected = losses(alone, x[:16], y[:16], 8)
outputs = alone.predict(x[:16], verbose=0)
loss_of_one = alone.evaluate(x[:16], y[:16], batch_size=8, verbose=0)

def fails(function, *args):
    try:
        function(*args)
    except RuntimeError as error:
        return "save_gathered(model, path)" in str(error)

# The batch goes over the processes; then the heads do.
for model_devices in (2, 4):
    d = ka.HeadParallel(model_devices, auto_shard_dataset=False)
    with ka.with_distribution(d):
        rows = ka.local_rows(len(x), 8)
        size = len(rows) // 2
        model = build()
        found = losses(model, x[rows], y[rows], size)
        print(np.allclose(found, expected, atol=1e-5), len(rows))
        predicted = model.predict(x[rows], batch_size=size, verbose=0)
        print(np.allclose(predicted, outputs[rows], atol=1e-3), predicted.shape[0])
        evaluated = model.evaluate(x[rows], y[rows], batch_size=size, verbose=0)
        print(abs(evaluated - loss_of_one) < 1e-4)
        path = f"{folder}/model_{model_devices}.keras"
        ka.save_gathered(model, path)
        if model_devices == 4:
            print(fails(model.get_weights), fails(model.save, f"{folder}/own_{rank}.keras"))
        else:
            print(len(model.get_weights()) == len(alone.get_weights()))
    loaded = keras.models.load_model(path)
    from jax.experimental.multihost_utils import process_allgather
    values = [v.value for v in [*model.weights, *model.optimizer.variables]]
    whole = [
        np.asarray(x) if x.is_fully_addressable else process_allgather(x, tiled=True)
        for x in values
    ]
    read = [np.asarray(v.value) for v in [*loaded.weights, *loaded.optimizer.variables]]
    print(len(whole) == len(read) and all(map(np.array_equal, whole, read)))
"""


def test_two_processes_have_the_numbers_of_one(tmp_path):
    ended = run_processes(CODE, tmp_path, XLA_FLAGS=xla_flags(2), FOLDER=str(tmp_path))
    expected = ["True 8", "True 8", "True", "True", "True"]
    expected += ["True 16", "True 16", "True", "True True", "True"]
    for status, output, errors in ended:
        assert status == 0, errors
        assert output == expected, errors
    assert sorted(path.name for path in tmp_path.glob("model_*")) == [
        "model_2.keras",
        "model_4.keras",
    ]


LOST = """
import os, signal, sys
rank, port = int(sys.argv[1]), sys.argv[2]
import keras, numpy as np
import kerasattention as ka

ka.attention_cluster(f"127.0.0.1:{port}", 2, rank)
x = np.random.default_rng(0).normal(size=(8, 7, 12)).astype("float32")

class Kill(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        # In each process: what one does alone puts them out of step.
        self.model.save_weights(os.environ["FOLDER"] + f"/last_{rank}.weights.h5")
        if rank == 1 and epoch == 1:
            os.kill(os.getpid(), signal.SIGKILL)

def build():
    inputs = keras.Input((7, 12))
    model = keras.Model(inputs, ka.MultiHeadAttention(2, 3)(inputs))
    model.compile("sgd", "mse")
    return model

with ka.with_distribution(keras.distribution.DataParallel(auto_shard_dataset=False)):
    model = build()
    try:
        model.fit(x, x, batch_size=4, epochs=10**6, verbose=0, callbacks=[Kill()])
    except RuntimeError as error:
        print(f"Process 0 of 2 lost another one, which" in str(error), f":{port}. " in str(error))
alone = build()
alone.load_weights(os.environ["FOLDER"] + "/last_0.weights.h5")
print(all(np.isfinite(w).all() for w in alone.get_weights()), flush=True)
os._exit(0)
"""


def test_a_process_that_ends_ends_the_others_with_its_name(tmp_path):
    (status, output, errors), _ = run_processes(LOST, tmp_path, seconds=60, FOLDER=str(tmp_path))
    assert output == ["True True", "True"], errors
    assert status == 0


def test_what_a_cluster_is_told_is_checked():
    for arguments, text in (
        (("localhost", 2, 0), r'"host:port".*Received: \'localhost\''),
        (("localhost:1", 0, 0), "`num_processes` must be a positive integer"),
        (("localhost:1", 2, 2), "between 0 and 1. Received: 2"),
    ):
        with pytest.raises(ValueError, match=text):
            ka.attention_cluster(*arguments)
    with pytest.raises(ValueError, match="within `with_distribution"):
        ka.local_rows(8, 4)


def test_a_session_that_has_computed_is_refused():
    import jax

    jax.devices()
    with pytest.raises(RuntimeError, match=r"Process 0 could not join .* localhost:1.*restart"):
        ka.attention_cluster("localhost:1", 2, 0)
