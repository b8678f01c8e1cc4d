"""Runs before Keras is loaded: selects a backend where nobody has, and silences TensorFlow's start.

Keras takes TensorFlow where neither KERAS_BACKEND nor its file names a backend, also where
TensorFlow is not installed. An import finder sets KERAS_BACKEND to a backend that is installed
just before Keras is loaded.

Imports neither Keras nor this package: R runs this file as soon as Python is started, and
`kerasattention/__init__.py` imports it before anything that loads Keras.
"""

import ctypes
import importlib.machinery
import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

BACKENDS = ("tensorflow", "jax", "torch")
_VARIABLE = "KERAS_BACKEND"

# Keras writes this file when it is loaded for the first time, on every backend: it is nobody's
# choice.
_WRITTEN_BY_KERAS = {
    "floatx": "float32",
    "epsilon": 1e-07,
    "backend": "tensorflow",
    "image_data_format": "channels_last",
}


def selected_backend() -> str | None:
    """The backend to use in TensorFlow's place: one that is installed, where nobody named one.

    None where a backend was named, TensorFlow is installed, or no other backend is.
    """
    _read_environment()
    if os.environ.get(_VARIABLE) or _is_named_in_file() or is_installed("tensorflow"):
        return None
    return next(filter(is_installed, BACKENDS[1:]), None)


def is_installed(module: str) -> bool:
    """Whether a module can be found. It is not imported."""
    if module in sys.modules:
        return True
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return False
    # A folder that an uninstalled package left behind has no origin.
    return spec is not None and spec.origin is not None


def _is_named_in_file() -> bool:
    folder = os.environ.get("KERAS_HOME", os.path.join("~", ".keras"))
    try:
        with open(os.path.expanduser(os.path.join(folder, "keras.json"))) as file:
            config = json.load(file)
    except (OSError, ValueError):
        return False
    return "backend" in config and config != _WRITTEN_BY_KERAS


def _read_environment() -> None:
    """Copies KERAS_BACKEND from the process to `os.environ`.

    Python reads the environment when it starts. R's `Sys.setenv()` changes it afterwards.
    """
    try:
        value = _process_variable(_VARIABLE)
    except (OSError, AttributeError):  # there is no such function on this system
        return
    if value is None:
        os.environ.pop(_VARIABLE, None)
    elif value != os.environ.get(_VARIABLE):
        os.environ[_VARIABLE] = value


def _process_variable(name: str) -> str | None:
    if sys.platform == "win32":
        buffer = ctypes.create_unicode_buffer(256)
        size = ctypes.windll.kernel32.GetEnvironmentVariableW(name, buffer, len(buffer))
        return buffer.value if size else None
    getenv = ctypes.CDLL(None).getenv
    getenv.restype = ctypes.c_char_p
    value = getenv(name.encode())
    return None if value is None else value.decode()


def before_keras() -> str | None:
    """Makes the next import of Keras read the backend anew. Gives the backend that was selected."""
    _forget_failed_import()
    backend = selected_backend()
    if backend is not None:
        os.environ[_VARIABLE] = backend
    return backend


def set_backend(backend: str) -> None:
    """What R's `use_backend()` does in a running Python."""
    os.environ[_VARIABLE] = backend


def _forget_failed_import() -> None:
    """Removes what an import of Keras that failed left behind.

    Python removes the module that failed alone: Keras's configuration would keep the backend
    that could not be loaded.
    """
    if "keras" not in sys.modules:
        for name in [name for name in sys.modules if name.startswith("keras.")]:
            del sys.modules[name]


class BackendFinder:
    """Sees Keras and TensorFlow before they are loaded. It finds no module itself.

    Attributes:
        selected: The backend that was selected for Keras, if any.
    """

    def __init__(self, announce: bool) -> None:
        self.announce = announce
        self.selected: str | None = None

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> Any:
        if name == "keras":
            self._before_keras()
        return None

    def _before_keras(self) -> None:
        backend = before_keras()
        if backend is not None:
            self.selected = backend
            if self.announce:
                print(
                    f"kerasattention: Keras runs on {backend}, as TensorFlow is not installed. "
                    f"Set {_VARIABLE} to choose a backend.",
                    file=sys.stderr,
                )


def install_finder(announce: bool = True) -> BackendFinder:
    """Adds the finder to Python's, once in a process.

    Args:
        announce: Whether it prints a line where it selects a backend.
    """
    for finder in sys.meta_path:
        # R runs this file under another name: its class is not the one of the package.
        if type(finder).__name__ == BackendFinder.__name__:
            return finder  # type: ignore[return-value]
    finder = BackendFinder(announce)
    sys.meta_path.insert(0, finder)
    return finder


if __name__ == "kerasattention._backend":  # not where R runs the file
    install_finder()
