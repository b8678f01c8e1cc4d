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


# The function of "mask-function", by the name under which its file knows it.
@keras.saving.register_keras_serializable("kept_files")
def sees_even_keys(queries, keys):
    return (keys <= queries) & (keys % 2 == 0)


def output_of(model):
    # The inputs that were used when the files were made.
    rng, given = np.random.default_rng(11), []
    for spec in model.inputs:
        shape = (2, *spec.shape[1:])
        x = rng.normal(size=shape) if "float" in spec.dtype else rng.integers(0, 4, shape)
        given.append(x.astype(spec.dtype))
    return to_numpy(model(given if len(given) > 1 else given[0], training=False))


def test_there_are_files_for_each_option():
    names = {path.stem for path in FILES}
    assert len(names) >= 36
    assert {"plain", "relative-shared", "attention-axes", "int8", "lora"} <= names
    assert {"mask-function", "norms", "relative-class-token", "key-value-of", "latent"} <= names


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
