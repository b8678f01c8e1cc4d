"""The package as pip installs it from `inst/python`, and the code of its README."""

import importlib.metadata
import os
import pathlib
import re
import shutil
import subprocess
import sys

import keras
import pytest

import kerasattention
from fresh import run_fresh

SOURCE = pathlib.Path(kerasattention.__file__).parent
PROJECT = SOURCE.parent


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    """A folder with the package, installed by pip from a copy: the build writes beside it."""
    folder = tmp_path_factory.mktemp("wheel")
    project = folder / "project"
    shutil.copytree(
        PROJECT, project, ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info")
    )
    arguments = ["--no-deps", "--no-index", "--no-build-isolation", "--target", folder / "target"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", *arguments, project],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": ""},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder / "target"


def test_all_modules_and_the_mark_of_types_are_installed(target):
    wanted = {path.relative_to(PROJECT) for path in SOURCE.rglob("*.py")}
    wanted.add(pathlib.Path("kerasattention", "py.typed"))
    assert {path for path in wanted if not (target / path).exists()} == set()


def test_the_metadata_are_those_of_the_package(target):
    (found,) = importlib.metadata.distributions(name="kerasattention", path=[str(target)])
    assert found.version == kerasattention.__version__
    assert set(found.metadata.get_all("Provides-Extra")) == {"tensorflow", "jax", "torch"}
    assert found.metadata["Requires-Python"] == ">=3.11"
    assert found.metadata["Description-Content-Type"] == "text/markdown"
    assert {"keras>=3.15", "numpy>=1.26"} <= set(found.requires)


def test_the_code_of_the_readme_runs_on_the_installed_package(target, tmp_path):
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    assert len(blocks) == 4
    code = [f"import os; os.chdir({str(tmp_path)!r})", *blocks]
    # What the README says about the results.
    code += [
        "assert all(np.array_equal(a, b) for a, b in zip(theirs.get_weights(), layer_weights))",
        "numpy = keras.ops.convert_to_numpy",
        "assert np.array_equal(numpy(loaded(x)), numpy(model(x)))",
        "assert keras.config.backend() == os.environ['KERAS_BACKEND']",
        "print(kerasattention.__file__, kerasattention.__version__)",
    ]
    code.insert(3, "layer_weights = layer.get_weights()")
    (line,), _ = run_fresh(
        "\n".join(code), tmp_path, KERAS_BACKEND=keras.config.backend(), PYTHONPATH=str(target)
    )
    assert line == f"{target / 'kerasattention' / '__init__.py'} {kerasattention.__version__}"
