"""The backend that Keras runs on where nobody named one."""

import ctypes
import json
import os
import sys

import keras
import pytest

from fresh import run_fresh
from kerasattention import _backend


@pytest.fixture
def backend():
    """A backend other than TensorFlow: that of the tests, or JAX."""
    tested = keras.config.backend()
    return tested if tested != "tensorflow" else "jax"


def test_an_installed_backend_takes_tensorflows_place(tmp_path, backend):
    absent = {*_backend.BACKENDS} - {backend}
    code = "import kerasattention, keras; print(keras.config.backend())"
    out, err = run_fresh(code, tmp_path, absent)
    assert out == [backend]
    assert [line for line in err if "kerasattention" in line] == [
        f"kerasattention: Keras runs on {backend}, as TensorFlow is not installed. "
        "Set KERAS_BACKEND to choose a backend."
    ]


def test_after_a_failed_import_another_backend_can_be_named(tmp_path, backend):
    code = f"""
try:
    import keras
except ModuleNotFoundError as error:
    print(error.name)
os.environ["KERAS_BACKEND"] = {backend!r}
import kerasattention, keras
print(keras.config.backend())
"""
    out, _ = run_fresh(code, tmp_path, ["tensorflow"], KERAS_BACKEND="tensorflow")
    assert out == ["tensorflow", backend]


@pytest.fixture
def without_tensorflow(monkeypatch, tmp_path):
    monkeypatch.setattr(_backend, "is_installed", lambda name: name == "torch")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.delenv("KERAS_BACKEND")
    return tmp_path / "keras.json"


def test_what_is_named_is_respected(without_tensorflow, monkeypatch):
    file = without_tensorflow
    assert _backend.selected_backend() == "torch"
    # Keras writes this file itself.
    file.write_text(json.dumps(_backend._WRITTEN_BY_KERAS))
    assert _backend.selected_backend() == "torch"
    file.write_text(json.dumps({**_backend._WRITTEN_BY_KERAS, "epsilon": 1e-6}))
    assert _backend.selected_backend() is None
    file.write_text(json.dumps({"backend": "jax"}))
    assert _backend.selected_backend() is None
    file.write_text("not JSON")
    assert _backend.selected_backend() == "torch"
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    assert _backend.selected_backend() is None


def test_keras_writes_the_file_that_counts_as_nobodys(tmp_path, backend):
    run_fresh("import keras", tmp_path, KERAS_BACKEND=backend)
    assert json.loads((tmp_path / "keras.json").read_text()) == _backend._WRITTEN_BY_KERAS


def test_a_variable_that_c_code_has_set_is_seen(monkeypatch):
    """R's `Sys.setenv()` does not change `os.environ`."""
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    ctypes.CDLL(None).setenv(b"KERAS_BACKEND", b"torch", 1)
    assert os.environ["KERAS_BACKEND"] == "jax"
    _backend._read_environment()
    assert os.environ["KERAS_BACKEND"] == "torch"
    ctypes.CDLL(None).unsetenv(b"KERAS_BACKEND")
    _backend._read_environment()
    assert "KERAS_BACKEND" not in os.environ


def test_modules_that_are_loaded_are_left_alone(monkeypatch):
    before = set(sys.modules)
    _backend._forget_failed_import()
    assert set(sys.modules) == before


def test_the_finder_is_there_once():
    finders = [finder for finder in sys.meta_path if isinstance(finder, _backend.BackendFinder)]
    assert len(finders) == 1
    assert _backend.install_finder() is finders[0]
    assert finders[0].find_spec("no_such_module") is None
