"""Code in a Python process of its own, in which nothing is set."""

import os
import subprocess
import sys

import kerasattention

# Some modules are not there.
WITHOUT = """
import os, sys
class Without:
    def find_spec(self, name, path=None, target=None):
        if name in {modules!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Without())
"""


def run_fresh(code, folder, without=(), status=0, **variables):
    """Its lines on standard output, and those on standard error. Keras's file is in `folder`."""
    unset = {"KERAS_BACKEND", "TF_CPP_MIN_LOG_LEVEL"}
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    package = os.path.dirname(os.path.dirname(kerasattention.__file__))
    environment.update(KERAS_HOME=str(folder), PYTHONPATH=package, **variables)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(modules=list(without)) + code],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == status, done.stderr
    return done.stdout.splitlines(), done.stderr.splitlines()
