"""Removing heads from whole models."""

import keras
import numpy as np
import pytest

import kerasattention
from backends import to_numpy
from classifiers import classifier, gqa, keras_mha, mha, nested
from decoding_models import full_pass
from kerasattention import (
    AlibiPosition,
    MultiHeadAttention,
    RelativeKeysPosition,
    RelativePosition,
    checks,
)


def zero_heads(model, removed):
    """Takes heads out by hand: their rows of the output kernel become zero."""
    for name, heads in removed.items():
        kernel = model.get_layer(name).projection("output").kernel
        array = to_numpy(kernel).copy()
        array[heads] = 0
        kernel.assign(array)


@pytest.mark.parametrize(
    ("make", "removed", "heads"),
    [
        (mha, {"attention_0": [1, 4]}, (3, 3)),
        (keras_mha, {"attention_0": [0], "attention_1": [2, 3]}, (4, 4)),
        (gqa, {"attention_0": [0, 5]}, (4, 2)),
        (gqa, {"attention_0": [3, 4, 5]}, (3, 1)),
    ],
)
def test_a_pruned_model_is_the_model_with_heads_at_zero(make, removed, heads, data):
    model = classifier(make)
    pruned = kerasattention.prune_heads(model, removed)
    by_hand = kerasattention.convert_attention(model)
    zero_heads(by_hand, removed)
    np.testing.assert_allclose(full_pass(pruned, data[0]), full_pass(by_hand, data[0]), atol=1e-6)
    left = pruned.get_layer("attention_0").heads
    assert (left.query, left.key_value) == heads
    assert pruned.count_params() < model.count_params()


def test_pruning_keeps_sinks_gates_and_norms(data):
    model = classifier(
        lambda name: gqa(name=name, attention_sink=True, use_gate=True, qk_norm=True)
    )
    model.get_layer("attention_0").sink.assign(np.arange(6) / 3)
    removed = {"attention_0": [1, 3]}
    pruned = kerasattention.prune_heads(model, removed)
    zero_heads(model, removed)
    np.testing.assert_allclose(full_pass(pruned, data[0]), full_pass(model, data[0]), atol=1e-6)


@pytest.mark.parametrize("kind", ["alibi", "relative"])
def test_pruning_keeps_the_biases_of_the_heads_that_stay(kind, data):
    random = np.random.default_rng(4)

    def make(name):
        position = AlibiPosition() if kind == "alibi" else RelativePosition(6, 5)
        return MultiHeadAttention(5, 4, position=position, use_causal_mask=True, name=name)

    model = classifier(make)
    if kind == "relative":
        for index in (0, 1):
            table = model.get_layer(f"attention_{index}").position.table
            table.assign(random.normal(size=table.shape))
    removed = {"attention_0": [0, 3], "attention_1": [2]}
    pruned = kerasattention.prune_heads(model, removed)
    expected = kerasattention.convert_attention(model)
    zero_heads(expected, removed)
    outputs = [full_pass(m, data[0]) for m in (pruned, expected)]
    np.testing.assert_allclose(*outputs, atol=1e-6)
    # Again, from what is left: heads 1, 2, 4 become 1, 4.
    twice = kerasattention.prune_heads(pruned, {"attention_0": [1]})
    zero_heads(expected, {"attention_0": [2]})
    outputs = [full_pass(m, data[0]) for m in (twice, expected)]
    np.testing.assert_allclose(*outputs, atol=1e-6)


def test_layers_that_share_a_table_lose_the_same_heads(data, tmp_path):
    shared = RelativePosition(6, 5)
    model = classifier(lambda name: MultiHeadAttention(5, 4, position=shared, name=name))
    shared.table.assign(np.random.default_rng(4).normal(size=shared.table.shape))
    with pytest.raises(ValueError, match="'attention_0' and 'attention_1' share the table"):
        kerasattention.prune_heads(model, {"attention_0": [1]})
    with pytest.raises(ValueError, match="Remove the same heads of both"):
        kerasattention.prune_heads(model, {"attention_0": [1], "attention_1": [2]})
    removed = {"attention_0": [1], "attention_1": [1]}
    pruned = kerasattention.prune_heads(model, removed)
    positions = [pruned.get_layer(name).position for name in removed]
    assert positions[0] is positions[1]
    zero_heads(model, removed)
    expected = full_pass(model, data[0])
    np.testing.assert_allclose(full_pass(pruned, data[0]), expected, atol=1e-6)
    pruned.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(full_pass(loaded, data[0]), expected, atol=1e-6)


def test_layers_that_share_keys_of_distances_lose_as_many_heads(data):
    shared = RelativeKeysPosition(3, "shaw")
    model = classifier(lambda name: MultiHeadAttention(5, 4, position=shared, name=name))
    with pytest.raises(ValueError, match="share one position, which needs layers of equal numb"):
        kerasattention.prune_heads(model, {"attention_0": [1]})
    removed = {"attention_0": [1], "attention_1": [3]}
    pruned = kerasattention.prune_heads(model, removed)
    zero_heads(model, removed)
    expected = full_pass(model, data[0])
    np.testing.assert_allclose(full_pass(pruned, data[0]), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ({"attention_0": [0]}, "would keep 2, 3 query heads.*must be equal"),
        ({"attention_0": [0, 1, 2, 3, 4, 5]}, "at least one"),
        ({"attention_0": [6]}, "between 0 and 5"),
        ({"other": [0]}, "other"),
    ],
)
def test_pruning_refuses(removed, message):
    with pytest.raises(ValueError, match=message):
        kerasattention.prune_heads(classifier(gqa), removed)


def test_least_important_heads():
    model = classifier(gqa)
    importance = {
        "attention_0": np.array([5.0, 1.0, 3.0, 2.0, 9.0, 4.0]),
        "attention_1": np.array([9.0, 9.0, 9.0, 9.0, 9.0, 9.0]),
    }
    # One of each group of three goes together: heads 1 and 3, then 2 and 5.
    assert kerasattention.least_important(model, importance, 0.2) == {
        "attention_0": [1, 3],
        "attention_1": [],
    }
    assert kerasattention.least_important(model, importance, 0.34)["attention_0"] == [1, 2, 3, 5]


def test_importance_of_other_layers_or_heads_is_refused():
    model = classifier(gqa)
    with pytest.raises(checks.UnknownLayerError, match=r"`importance`.*'other'.*'attention_0'"):
        kerasattention.least_important(model, {"other": np.ones(6)}, 0.5)
    with pytest.raises(ValueError, match=r"6 numbers for layer 'attention_1'.*Received: 5"):
        kerasattention.least_important(model, {"attention_1": np.ones(5)}, 0.5)


def test_layers_of_one_name_are_refused():
    """Both would lose the heads that one of them was asked to lose."""
    with pytest.raises(ValueError, match=r"several layers of the names 'attention_0'"):
        kerasattention.prune_heads(nested(mha), {"attention_0": [1]})
