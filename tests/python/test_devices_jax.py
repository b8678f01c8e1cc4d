"""Tests on 8 devices, in processes of their own: JAX has as many devices as when it was loaded."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "devices"


@pytest.mark.parametrize("file", sorted(path.name for path in FOLDER.glob("test_*.py")))
def test_on_8_devices(file):
    flags = [
        *("--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0"),
        *("--xla_llvm_disable_expensive_passes=true", os.environ.get("XLA_FLAGS", "")),
    ]
    environment = {
        **os.environ,
        "XLA_FLAGS": " ".join(flags),
        "KERASATTENTION_DEVICES": "8",
        "PYTHONPATH": os.pathsep.join([str(FOLDER), os.environ.get("PYTHONPATH", "")]),
    }
    environment.pop("PYTEST_ADDOPTS", None)
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "-q", str(FOLDER / file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
