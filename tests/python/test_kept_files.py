"""Files that earlier versions saved (tools/kept_files.py) load and give the same numbers."""

import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

import kerasattention  # noqa: F401 (its classes are in the files)
from backends import to_numpy

FOLDER = Path(__file__).resolve().parents[1] / "files"
FILES = sorted(FOLDER.glob("*/*.keras"))


def output_of(model):
    # The input that was used when the files were made.
    x = np.random.default_rng(11).normal(size=(2, *model.input_shape[1:])).astype("float32")
    return to_numpy(model(x, training=False))


def test_there_are_files_for_each_option():
    names = {path.stem for path in FILES}
    assert len(names) >= 17
    assert {"plain", "relative-shared", "attention-axes", "int8", "lora"} <= names


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_kept_files_load_and_give_the_recorded_numbers(path, tmp_path):
    recorded = np.load(path.parent / "outputs.npz")[path.stem]
    model = keras.models.load_model(path)
    np.testing.assert_allclose(output_of(model), recorded, atol=1e-5)
    for variable in model.weights:
        variable.assign(keras.ops.zeros(variable.shape, variable.dtype))
    with zipfile.ZipFile(path.with_name(f"{path.stem}.weights.h5.zip")) as archive:
        archive.extractall(tmp_path)
    model.load_weights(tmp_path / f"{path.stem}.weights.h5")
    np.testing.assert_allclose(output_of(model), recorded, atol=1e-5)
    if path.stem == "relative-shared":
        first, second = (layer.position for layer in model.layers[1:])
        assert first is second
