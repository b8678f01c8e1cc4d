"""The package's public names: where classes say they are, which R and pickles rely on."""

import ast
import pathlib
import pickle

import keras
import pytest

import kerasattention

CLASSES = [
    x for name in kerasattention.__all__ if isinstance(x := getattr(kerasattention, name), type)
]
LAYERS = [kerasattention.MultiHeadAttention, kerasattention.GroupQueryAttention]


@pytest.mark.parametrize("kind", [*CLASSES, kerasattention.AttentionLayer])
def test_public_classes_are_found_where_they_say_they_are(kind):
    assert kind.__module__ == "kerasattention"
    assert getattr(kerasattention, kind.__qualname__) is kind
    assert pickle.loads(pickle.dumps(kind)) is kind


def test_r_tells_layers_by_these_class_strings():
    strings = [f"{kind.__module__}.{kind.__qualname__}" for kind in LAYERS]
    assert strings == ["kerasattention.MultiHeadAttention", "kerasattention.GroupedQueryAttention"]
    assert all(issubclass(kind, kerasattention.AttentionLayer) for kind in LAYERS)


def test_the_names_in_saved_files_stay():
    registered = {keras.saving.get_registered_name(kind) for kind in CLASSES}
    assert registered >= {
        "kerasattention>AlibiPosition",
        "kerasattention>GroupQueryAttention",
        "kerasattention>MultiHeadAttention",
        "kerasattention>RelativePosition",
        "kerasattention>RotaryPosition",
        "kerasattention>ScaleByPosition",
    }


def private_names_used(path):
    """Private attributes that a module reads of anything but `self` and `cls`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            if owner not in ("self", "cls"):
                yield node.attr


@pytest.mark.parametrize("folder", ["models", "decoding"])
def test_models_and_decoding_use_no_private_name_of_our_layers(folder):
    layer = kerasattention.GroupQueryAttention(4, 6, 2, use_gate=True, qk_norm=True)
    layer.build((2, 5, 7))
    plain = set(dir(keras.layers.Layer()))
    private = {name for name in dir(layer) if name.startswith("_") and name not in plain}
    assert {"_query_dense", "_fold", "_sliding_window"} <= private
    files = list((pathlib.Path(kerasattention.__file__).parent / folder).rglob("*.py"))
    assert len(files) > 8
    used = {(path.name, name) for path in files for name in private_names_used(path)}
    assert {(file, name) for file, name in used if name in private} == set()
