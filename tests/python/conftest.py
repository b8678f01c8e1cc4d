"""Says which backend is tested; without Keras there is nothing to test, which is never green."""

import gc
import importlib.util
import os

import hypothesis
import pytest

# The time of an example is that of the machine and of what runs beside it.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# Python looks for garbage after every 700 new objects, among millions of Keras and a backend: a
# tenth of the suite's time. The fixture below does so after each file.
gc.set_threshold(100_000, 50, 100)

HAS_KERAS = importlib.util.find_spec("keras") is not None

if not HAS_KERAS:
    if os.environ.get("KERASATTENTION_ENV") == "1":
        raise pytest.UsageError(
            "Keras is not installed in this Python, but KERASATTENTION_ENV=1 says that this is the "
            "project's environment. Type 'make setup'."
        )
    # pytest ends with status 5, "no tests collected".
    collect_ignore_glob = ["test_*.py"]
else:
    import keras

    # What is written for one backend is not collected on the others.
    backends = {"tensorflow", "jax", "torch"} - {keras.config.backend()}
    collect_ignore_glob = [f"test_*_{backend}.py" for backend in backends]
    # What starts processes and is the same on each backend runs where they start fastest.
    if keras.config.backend() != "torch":
        collect_ignore_glob += ["test_backend.py", "test_wheel.py"]
    # Run by `test_devices_jax.py`, in processes with several devices.
    if "KERASATTENTION_DEVICES" not in os.environ:
        collect_ignore_glob.append("devices/*")

    # A tenth of that suite's time. The initial weights of the others are Keras's own.
    if keras.config.backend() == "jax":
        import numpy_initializers

        numpy_initializers.install()


def pytest_report_header():
    if not HAS_KERAS:
        return "keras: not installed, so no test can run"
    import keras

    import kerasattention

    where = os.path.dirname(kerasattention.__file__)
    return f"keras: {keras.__version__} on {keras.backend.backend()}; kerasattention: {where}"


@pytest.fixture(autouse=True, scope="module")
def collect_only_what_this_file_makes():
    """Keras collects garbage whenever it quantises a layer: a second each in a full process."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def doubles():
    """Lets tensors be float64, which JAX has only where it is switched on."""
    import keras

    if keras.backend.backend() != "jax":
        yield
        return
    import jax

    with jax.enable_x64(True):
        yield


@pytest.fixture
def data():
    """Inputs and classes for the small models of `classifiers`."""
    from classifiers import tokens_and_classes

    return tokens_and_classes()
