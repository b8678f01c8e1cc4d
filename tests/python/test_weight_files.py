"""Weight files and saved models go both ways between Keras's layers and ours."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import kerasattention
from backends import predicted

T, D = 7, 22
KERAS = {"mha": keras.layers.MultiHeadAttention, "gqa": keras.layers.GroupQueryAttention}
OURS = {
    "mha": kerasattention.MultiHeadAttention,
    "gqa": kerasattention.GroupQueryAttention,
}
SIZES = {"mha": {"num_heads": 3, "key_dim": 5}, "gqa": {"head_dim": 5, "num_query_heads": 6}}
SIZES["gqa"]["num_key_value_heads"] = 2
OPTIONS = [
    {},
    {"use_bias": False},
    {"use_gate": True},
    {"dropout": 0.2, "seed": 3},
    {"dropout": 0.2, "use_gate": True},
]


def model(kinds, kind, **options):
    inputs = keras.Input((T, D))
    layer = kinds[kind](**SIZES[kind], bias_initializer="random_normal", **options)
    return keras.Model(inputs, keras.layers.Dense(3)(layer(inputs, inputs)))


def numbers():
    return np.random.default_rng(3).normal(size=(2, T, D)).astype("float32")


@pytest.mark.parametrize("kind", ["mha", "gqa"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_weight_files_go_both_ways(kind, options, tmp_path):
    theirs, ours = model(KERAS, kind, **options), model(OURS, kind, **options)
    theirs.save_weights(tmp_path / "theirs.weights.h5")
    expected = predicted(theirs, numbers())
    ours.load_weights(tmp_path / "theirs.weights.h5")
    np.testing.assert_allclose(predicted(ours, numbers()), expected, atol=1e-5)

    fresh = model(KERAS, kind, **options)
    ours.save_weights(tmp_path / "ours.weights.h5")
    fresh.load_weights(tmp_path / "ours.weights.h5")
    np.testing.assert_allclose(predicted(fresh, numbers()), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["mha", "gqa"])
@pytest.mark.parametrize("options", [{}, {"use_bias": False, "use_gate": True}], ids=str)
def test_set_weights_goes_both_ways(kind, options):
    theirs, ours = model(KERAS, kind, **options), model(OURS, kind, **options)
    assert [w.shape for w in theirs.weights] == [w.shape for w in ours.weights]
    ours.set_weights(theirs.get_weights())
    np.testing.assert_allclose(predicted(ours, numbers()), predicted(theirs, numbers()), atol=1e-5)


@pytest.mark.parametrize("kind", ["mha", "gqa"])
def test_configs_go_both_ways(kind):
    ours = OURS[kind](**SIZES[kind], dropout=0.1, sliding_window=3, use_gate=True, seed=1)
    theirs = KERAS[kind].from_config(ours.get_config())
    back = OURS[kind].from_config(theirs.get_config())
    config = {**ours.get_config(), "flash_attention": None}
    assert {**back.get_config(), "flash_attention": None} == config


@pytest.mark.parametrize("flash", [None, True, False])
@pytest.mark.parametrize("kind", ["mha", "gqa"])
def test_flash_attention_survives(kind, flash):
    layer = OURS[kind](**SIZES[kind], flash_attention=flash)
    assert OURS[kind].from_config(layer.get_config()).flash_attention is flash


@pytest.mark.parametrize("kind", ["mha", "gqa"])
def test_quantised_models_reload(kind, tmp_path):
    quantised = model(
        OURS, kind, use_gate=True, position=kerasattention.RotaryPosition(fraction=0.8)
    )
    before = predicted(quantised, numbers())
    quantised.quantize("int8")
    after = predicted(quantised, numbers())
    assert 0 < np.abs(after - before).max() < 0.1
    quantised.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(predicted(loaded, numbers()), after, atol=1e-6)
    kernels = [w.dtype for w in loaded.layers[1].weights if w.path.endswith("query/kernel")]
    assert kernels == ["int8"]


def test_a_saved_model_loads_in_a_new_process(tmp_path):
    inputs = keras.Input((T, D))
    layer = kerasattention.GroupQueryAttention(
        4,
        6,
        2,
        position=kerasattention.RelativePosition(8, 16),
        qk_norm=True,
        attention_sink=True,
        logit_soft_cap=5.0,
        sliding_window=4,
        use_causal_mask=True,
    )
    saved = keras.Model(inputs, layer(inputs))
    saved.save(tmp_path / "model.keras")
    np.save(tmp_path / "expected.npy", predicted(saved, numbers()))
    np.save(tmp_path / "x.npy", numbers())
    code = (
        "import keras, kerasattention, numpy as np, sys; folder = sys.argv[1]; "
        "model = keras.models.load_model(folder + '/model.keras', safe_mode=True); "
        "found = model.predict(np.load(folder + '/x.npy'), verbose=0); "
        "print(np.abs(found - np.load(folder + '/expected.npy')).max() < 1e-5)"
    )
    path = str(Path(kerasattention.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip().endswith("True"), done.stderr[-2000:]
