"""Makes the small models that are kept under tests/files, one for each option of the layers.

    python tools/kept_files.py             # writes tests/files/VERSION, or what it lacks
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
from collections.abc import Callable
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


def one(shape: tuple[int, ...] = (T, D), axes: int = 0, **options: Any) -> keras.Model:
    """One layer, with an input of positions of so many axes, if any."""
    inputs, layer = keras.Input(shape), ka.MultiHeadAttention(N, H, name="mha", **options)
    if not axes:
        return keras.Model(inputs, layer(inputs))
    positions = keras.Input((T, axes), dtype="int32")
    return keras.Model([inputs, positions], layer(inputs, positions=positions))


def shared_table() -> keras.Model:
    table = ka.RelativePosition(8, 6)
    return both(position=lambda: table)


def shared_keys() -> keras.Model:
    inputs = keras.Input((T, D))
    first = ka.GroupQueryAttention(H, N, 1, name="first", use_causal_mask=True)
    second = ka.GroupQueryAttention(
        H, N, 1, name="second", use_causal_mask=True, key_value_of=first, use_gate="head"
    )
    return keras.Model(inputs, second(first(inputs)))


def latent() -> keras.Model:
    inputs = keras.Input((T, D))
    layer = ka.LatentAttention(
        N, H, 3, query_rank=5, rotary_dim=2, use_causal_mask=True, name="mla"
    )
    return keras.Model(inputs, layer(inputs))


@keras.saving.register_keras_serializable("kept_files")
def sees_even_keys(queries: Any, keys: Any) -> Any:
    return (keys <= queries) & (keys % 2 == 0)


def rotary_of(**scaling: Any) -> Callable[[], ka.RotaryPosition]:
    return lambda: ka.RotaryPosition(500.0, scaling=scaling)


SINKS = ka.CausalMask() & (ka.WindowMask(2) | ka.PrefixMask(1))
KINDS = (ka.ChunkMask(3) | ka.DilatedMask(2)) & ~ka.BlockMask([[0, 1], [1, 0]], 3)
NORM = {"type": "layer", "over": "width", "epsilon": 1e-3, "after_position": True, "bias": True}
SHORT = {"original_max_position_embeddings": 4, "factor": 2.0}
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONG = {"short_factor": [1.0, 1.5], "long_factor": [2.0, 3.0]}

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
    "mask-sinks": lambda: both(mask=SINKS),
    "mask-kinds": lambda: both(mask=KINDS),
    "mask-function": lambda: both(mask=ka.MaskFunction(sees_even_keys)),
    "norms": lambda: both(qk_norm=NORM, value_norm=True, scale="learned", use_gate="head"),
    "query-scale": lambda: both(
        qk_norm="l2", scale=0.3, query_scale={"type": "llama4", "floor_scale": 2}
    ),
    "rotary-llama3": lambda: both(position=rotary_of(type="llama3", **SHORT, **LLAMA3)),
    "rotary-dynamic": lambda: both(position=rotary_of(type="dynamic", **SHORT)),
    "rotary-longrope": lambda: both(position=rotary_of(type="longrope", **SHORT, **LONG)),
    "rotary-proportional": lambda: both(
        position=rotary_of(type="proportional", factor=2.0, partial_rotary_factor=0.5)
    ),
    "rotary-sections": lambda: one(axes=2, position=ka.RotaryPosition(500.0, sections=(1, 1))),
    "relative-axes": lambda: one(
        (3, T, D), attention_axes=(1, 2), position=ka.RelativePosition(max_distance=2, axes=2)
    ),
    "relative-class-token": lambda: one(
        axes=2, position=ka.RelativePosition(max_distance=2, axes=2, class_token=True)
    ),
    "relative-keys-shaw": lambda: both(position=lambda: ka.RelativeKeysPosition(3)),
    "relative-keys-huang": lambda: one(position=ka.RelativeKeysPosition(3, "huang")),
    "relative-keys-deberta": lambda: one(position=ka.RelativeKeysPosition(8, "deberta", 8)),
    "relative-keys-transformer-xl": lambda: both(
        position=lambda: ka.RelativeKeysPosition(3, "transformer_xl")
    ),
    "key-as-value": lambda: both(use_key_as_value=True),
    "key-value-of": shared_keys,
    "latent": latent,
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


def inputs_of(model: keras.Model) -> list[np.ndarray]:
    random, found = np.random.default_rng(11), []
    for given in model.inputs:
        shape = (2, *given.shape[1:])
        is_real = "float" in given.dtype
        x = random.normal(size=shape) if is_real else random.integers(0, 4, shape)
        found.append(x.astype(given.dtype))
    return found


def outputs_of(model: keras.Model) -> np.ndarray:
    given = inputs_of(model)
    given = given if len(given) > 1 else given[0]
    return keras.ops.convert_to_numpy(model(given, training=False))


def write(folder: Path) -> None:
    """Writes the cases that the folder lacks."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "outputs.npz"
    outputs = dict(np.load(kept)) if kept.exists() else {}
    for name in [case for case in CASES if case not in outputs]:
        model = make(name)
        model.save(folder / f"{name}.keras")
        model.save_weights(folder / f"{name}.weights.h5")
        outputs[name] = outputs_of(model)
        _compress(folder / f"{name}.keras")
        _compress(folder / f"{name}.weights.h5")
    np.savez_compressed(kept, **outputs)


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
    """A config without what differs from one process, or place of a class, to the next."""
    left_out = ("shared_object_id", "module", "key")
    if isinstance(config, dict):
        return {k: _without_ids(v) for k, v in config.items() if k not in left_out}
    return [_without_ids(item) for item in config] if isinstance(config, list) else config


if __name__ == "__main__":
    folder = ROOT / "tests" / "files" / VERSION
    compare(folder) if sys.argv[1:] == ["compare"] else write(folder)
