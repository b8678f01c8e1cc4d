"""Private names of Keras: in `_keras.py` and nowhere else, and an error where one is gone."""

import ast
import pathlib

import keras
import pytest

import kerasattention
from kerasattention import _keras

MODULE = pathlib.Path(kerasattention.__file__).parent
SOURCES = [path for path in MODULE.rglob("*.py") if path.name != "_keras.py"]
TESTS = [x for x in pathlib.Path(__file__).parent.glob("*.py") if x.name != "test_keras_names.py"]


# Of another library: torch's tensors have it.
OTHERS = {"_version"}


def names_of(*owners):
    """Private names that Keras gave objects or their classes, not torch's `Module`."""
    classes = {kind for owner in owners for kind in type(owner).__mro__}
    others = [kind for kind in classes if not kind.__module__.startswith("keras.")]
    found = {name for owner in owners for name in dir(owner)}
    found -= {name for kind in others for name in vars(kind)} | OTHERS
    return {name for name in found if name.startswith("_") and not name.startswith("__")}


def private_names():
    """Those of layers, and those of models, nodes, tensors, variables and optimizers too."""
    inputs = keras.Input((5, 3))
    model = keras.Model(inputs, keras.layers.Dense(2)(inputs))
    model.compile("adam", "mse")
    sequential = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    node = model.layers[-1]._inbound_nodes[0]
    others = (inputs, model, model.layers[-1], sequential, node)
    others += (model.optimizer, model.weights[0])
    return names_of(keras.layers.Layer()), names_of(*others) | {"_keras_mask"}


def used_names(path):
    """Attributes by their name and whether they are of `self`, and strings for `getattr()`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            yield node.attr, isinstance(node.value, ast.Name) and node.value.id == "self"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value, False


def test_no_other_module_uses_a_private_name_of_keras():
    assert len(SOURCES) > 50
    of_layers, of_all = private_names()
    assert {"_flatten_layers", "_layers"} <= of_layers
    assert {"_nodes_by_depth", "_functional"} <= of_all
    used = {
        (path.relative_to(MODULE).as_posix(), name)
        for path in SOURCES
        for name, of_self in used_names(path)
        if name in (of_layers if of_self else of_all)
    }
    assert used == set()


@pytest.mark.parametrize("paths", [SOURCES, TESTS], ids=["module", "tests"])
def test_no_other_file_imports_a_private_module_of_keras(paths):
    assert [path.name for path in paths if "keras.src" in path.read_text(encoding="utf-8")] == []


def test_the_classes_that_r_knows_are_where_it_looks():
    for kind, known in (
        (keras.layers.Layer, "keras.src.layers.layer.Layer"),
        (keras.Model, "keras.src.models.model.Model"),
        (keras.Sequential, "keras.src.models.sequential.Sequential"),
    ):
        assert f"{kind.__module__}.{kind.__qualname__}" == known


def test_a_name_that_moved_is_found_and_one_that_is_gone_is_an_error_that_names_it():
    modules = ("keras.src.no_such_module", "keras.src.backend.common.masking")
    assert _keras._find("get_keras_mask", *modules) is _keras.get_keras_mask
    with pytest.raises(ImportError, match=rf"`no_such_name` of Keras, .*{keras.__version__}"):
        _keras._find("no_such_name", *modules)
    with pytest.raises(AttributeError, match=r"`Dense\._no_such_name` of Keras"):
        _keras._attribute(keras.layers.Dense(3), "_no_such_name")
