"""The package's public names: where classes say they are, which R and pickles rely on."""

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
    }
