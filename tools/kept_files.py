"""Makes the small models that are kept under tests/files, one for each option of the layers.

    python tools/kept_files.py             # writes tests/files/VERSION, for a new version
    python tools/kept_files.py compare     # does this backend save what is kept?

`tests/python/test_kept_files.py` loads what is there and compares the numbers. Kept files are
never made anew: a version that cannot load them breaks what its users have saved. All backends
save the same, which `compare` shows (KERAS_BACKEND=torch, and so on).
"""

import io
import json
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

import kerasattention as ka

ROOT = Path(__file__).resolve().parents[1]
VERSION = "0.0.0.9000"
T, D, N, H = 5, 6, 2, 4
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


def both(**options: Any) -> keras.Model:
    """Both layers, one after the other, each with its own position where it has one."""
    inputs = keras.Input((T, D))
    own = {name: value() if callable(value) else value for name, value in options.items()}
    x = ka.MultiHeadAttention(N, H, name="mha", **own)(inputs)
    own = {name: value() if callable(value) else value for name, value in options.items()}
    return keras.Model(inputs, ka.GroupQueryAttention(H, N, 1, name="gqa", **own)(x))


def one(shape: tuple[int, ...] = (T, D), **options: Any) -> keras.Model:
    inputs = keras.Input(shape)
    return keras.Model(inputs, ka.MultiHeadAttention(N, H, name="mha", **options)(inputs))


def shared_table() -> keras.Model:
    table = ka.RelativePosition(8, 6)
    return both(position=lambda: table)


CASES = {
    "plain": lambda: both(),
    "rotary": lambda: both(position=lambda: ka.RotaryPosition(5000.0, 0.5, "interleaved")),
    "rotary-yarn": lambda: both(position=lambda: ka.RotaryPosition(scaling=YARN)),
    "alibi": lambda: both(position=lambda: ka.AlibiPosition()),
    "relative": lambda: both(position=lambda: ka.RelativePosition(8, 6), use_causal_mask=True),
    "relative-shared": shared_table,
    "qk-norm": lambda: both(qk_norm=True),
    "sink": lambda: both(attention_sink=True),
    "gate": lambda: both(use_gate=True),
    "soft-cap": lambda: both(logit_soft_cap=2.5),
    "window": lambda: both(sliding_window=2, use_causal_mask=True),
    "no-bias": lambda: both(use_bias=False),
    "training-options": lambda: both(
        dropout=0.25,
        seed=3,
        flash_attention=False,
        kernel_initializer="he_normal",
        kernel_regularizer="l2",
        bias_constraint="non_neg",
    ),
    "attention-axes": lambda: one((3, T, D), attention_axes=(1, 2)),
    "value-dim": lambda: one(value_dim=3, output_shape=(7,)),
    "int8": lambda: both(use_gate=True),
    "lora": lambda: both(qk_norm=True),
}


def make(name: str) -> keras.Model:
    """The model of a case, its weights drawn."""
    keras.backend.clear_session()
    model = CASES[name]()
    random = np.random.default_rng(list(CASES).index(name))
    if name == "lora":
        ka.enable_lora(model, 2)
    for variable in model.weights:
        if "seed_generator" not in variable.path:
            variable.assign(0.4 * random.normal(size=variable.shape).astype("float32"))
    if name == "int8":
        model.quantize("int8")
    return model


def inputs_of(model: keras.Model) -> np.ndarray:
    shape = (2, *model.input_shape[1:])
    return np.random.default_rng(11).normal(size=shape).astype("float32")


def outputs_of(model: keras.Model) -> np.ndarray:
    return keras.ops.convert_to_numpy(model(inputs_of(model), training=False))


def write(folder: Path) -> None:
    folder.mkdir(parents=True)
    outputs = {}
    for name in CASES:
        model = make(name)
        model.save(folder / f"{name}.keras")
        model.save_weights(folder / f"{name}.weights.h5")
        outputs[name] = outputs_of(model)
        _compress(folder / f"{name}.keras")
        _compress(folder / f"{name}.weights.h5")
    np.savez_compressed(folder / "outputs.npz", **outputs)


def _compress(path: Path) -> None:
    """The same bytes in a compressed archive: Keras's is not, and most of HDF5 is zeros."""
    members = {path.name: path.read_bytes()}
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
    else:
        path.unlink()
        path = path.with_name(f"{path.name}.zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def compare(folder: Path) -> None:
    """Ends with an error where this backend saves another config, other weights or numbers."""
    kept = np.load(folder / "outputs.npz")
    for name in CASES:
        model = make(name)
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / "model.keras"
            model.save(path)
            configs, weights = zip(_content(path), _content(folder / f"{name}.keras"), strict=True)
        assert configs[0] == configs[1], name
        assert weights[0].keys() == weights[1].keys(), name
        for key, array in weights[0].items():
            np.testing.assert_allclose(array, weights[1][key], atol=1e-6, err_msg=f"{name}: {key}")
        np.testing.assert_allclose(outputs_of(model), kept[name], atol=1e-5, err_msg=name)
        print("the same:", name)


def _content(path: Path) -> tuple[Any, dict[str, np.ndarray]]:
    with zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read("config.json"))
        weights = io.BytesIO(archive.read("model.weights.h5"))
    arrays = {}
    with h5py.File(weights) as file:
        file.visititems(lambda k, v: arrays.update({k: v[()]}) if hasattr(v, "shape") else None)
    return _without_ids(config), arrays


def _without_ids(config: Any) -> Any:
    """A config without what differs from one process to the next."""
    if isinstance(config, dict):
        return {k: _without_ids(v) for k, v in config.items() if k != "shared_object_id"}
    return [_without_ids(item) for item in config] if isinstance(config, list) else config


if __name__ == "__main__":
    folder = ROOT / "tests" / "files" / VERSION
    compare(folder) if sys.argv[1:] == ["compare"] else write(folder)
