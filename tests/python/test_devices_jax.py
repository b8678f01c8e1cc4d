"""Tests on 8 devices, in a process of their own: JAX keeps the devices that it was loaded with."""

import os
import subprocess
import sys
from pathlib import Path

from fresh import xla_flags

FOLDER = Path(__file__).parent / "devices"


def test_on_8_devices():
    environment = {
        **os.environ,
        "XLA_FLAGS": xla_flags(8),
        "KERASATTENTION_DEVICES": "8",
        "PYTHONPATH": os.pathsep.join([str(FOLDER), os.environ.get("PYTHONPATH", "")]),
    }
    environment.pop("PYTEST_ADDOPTS", None)
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "-q", str(FOLDER)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-9000:] + done.stderr[-2000:]
