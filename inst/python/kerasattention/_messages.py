"""Keeps the lines that TensorFlow writes about itself when it is loaded off standard error.

C++ code writes them to the file descriptor: the build's instruction sets, oneDNN, CUDA libraries
that are not there. Some come before TF_CPP_MIN_LOG_LEVEL counts. Every other line is passed on, and
nothing is left out where the user has set that variable to 0.

Imports neither Keras nor this package, like `_backend.py`.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any


def _is_loaded_quietly(module: str) -> bool:
    """TensorFlow, and the module of Keras that first makes it look at its devices."""
    is_backend = module.startswith("keras.") and module.endswith(".backend.tensorflow")
    return module == "tensorflow" or is_backend


_LEVEL = "TF_CPP_MIN_LOG_LEVEL"

# What is in a line that is left out. Lines of other files of TensorFlow are passed on.
KNOWN_LINES = (
    "All log messages before absl::InitializeLog() is called are written to STDERR",
    "oneDNN custom operations are on",
    "cpu_feature_guard.cc",
    "To enable the following instructions:",
    "Could not find cuda drivers on your machine, GPU will not be used",
    "Unable to register cuFFT factory",
    "Unable to register cuDNN factory",
    "Unable to register cuBLAS factory",
    "computation placer already registered",
)

# Another process passes the lines on: where the import ends the process (a build for other
# processors does), its last words still arrive. It ends when the pipe is closed.
_FILTER = """
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
known = [line.encode() for line in sys.argv[1:]]
for line in sys.stdin.buffer:
    if not any(part in line for part in known):
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
"""


@contextlib.contextmanager
def without_known_lines() -> Iterator[None]:
    """Leaves the known lines out of what is written to the file descriptor of standard error."""
    try:
        original = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    try:
        process = _start_filter(original)
        if process is None:
            yield
            return
        _flush()
        os.dup2(process.stdin.fileno(), 2)
        try:
            yield
        finally:
            _flush()
            os.dup2(original, 2)
            _end_filter(process)
    finally:
        os.close(original)


def _start_filter(output: int) -> subprocess.Popen[bytes] | None:
    try:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _FILTER, *KNOWN_LINES],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.DEVNULL,
        )
    except OSError:  # there is no such program, or no process may be started
        return None


def _end_filter(process: subprocess.Popen[bytes]) -> None:
    process.stdin.close()
    # What the import started may hold the pipe open.
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=2)


def _flush() -> None:
    with contextlib.suppress(AttributeError, OSError, ValueError):  # closed, or None
        sys.stderr.flush()


class QuietFinder:
    """Finds TensorFlow as the other finders do, and loads it without the known lines."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> Any:
        if not _is_loaded_quietly(name) or os.environ.get(_LEVEL) == "0":
            return None
        others = [finder for finder in sys.meta_path if not isinstance(finder, QuietFinder)]
        specs = (finder.find_spec(name, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            self._silence(spec.loader)
        return spec

    def _silence(self, loader: Any) -> None:
        load = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            # Lines of level INFO come later too, for instance with the first compiled step.
            os.environ[_LEVEL] = os.environ.get(_LEVEL) or "1"
            with without_known_lines():
                load(module)

        loader.exec_module = exec_module


def install_finder() -> QuietFinder:
    """Adds the finder to Python's, once in a process."""
    for finder in sys.meta_path:
        # R runs this file under another name: its class is not the one of the package.
        if type(finder).__name__ == QuietFinder.__name__:
            return finder  # type: ignore[return-value]
    finder = QuietFinder()
    sys.meta_path.insert(0, finder)
    return finder


if __name__ == "kerasattention._messages":  # not where R runs the file
    install_finder()
