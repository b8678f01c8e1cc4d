"""Code in a fresh Python process, in which nothing is set."""

import os
import subprocess
import sys

import kerasattention

# Some modules are not found.
WITHOUT = """
import importlib.machinery, os, sys
finder = importlib.machinery.PathFinder
find_spec = finder.find_spec
def find_others(name, *args):
    return None if name in {modules!r} else find_spec(name, *args)
finder.find_spec = staticmethod(find_others)
"""


def run_fresh(code, folder, without=(), status=0, **variables):
    """Its lines on standard output, and those on standard error. Keras's file is in `folder`.

    `variables` are of the environment; `PYTHONPATH` is the package that is tested unless given.
    """
    unset = {"KERAS_BACKEND", "TF_CPP_MIN_LOG_LEVEL"}
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    package = os.path.dirname(os.path.dirname(kerasattention.__file__))
    environment.update({"KERAS_HOME": str(folder), "PYTHONPATH": package} | variables)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(modules=list(without)) + code],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == status, done.stderr
    return done.stdout.splitlines(), done.stderr.splitlines()
