"""Relative position biases of several axes, in the kernels and in layers."""

import keras
import numpy as np
import pytest

import kerasattention as ka
import layer_reference
import position_reference as formulas
import reference
from backends import BACKEND, predicted, sampled, tensor, to_numpy, value_and_gradients
from kerasattention import RelativePosition
from kerasattention.attend import api
from kerasattention.attend.mask import AttentionMask
from kerasattention.attend.tensors import KeySpans, Span
from kerasattention.positions.grid import GridBias, entries_of, with_class_token
from layer_twins import randomize, weights_of
from position_reference import B, K, N, T, numbers
from problems import block_size

D, FARTHEST = 5, (2, 3)
COUNT = 5 * 7
PLACES = np.random.default_rng(3).integers(0, 6, (B, T, 2))


def test_entries_by_hand():
    """A window of 2 x 2: the same as in Swin, offsets of a query less those of a key."""
    grid = tensor(np.array([[[0, 0], [0, 1], [1, 0], [1, 1]]]))
    bias = GridBias(tensor(np.zeros((9, 1))), grid, grid, (1, 1))
    entries = to_numpy(bias.entries(Span(0, 4), Span(0, 4)))[0]
    assert entries.tolist() == [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]
    parts = KeySpans((Span(0, 1), Span(3, 1)))
    assert to_numpy(bias.entries(Span(1, 2), parts))[0].tolist() == [[5, 1], [7, 3]]
    assert entries_of((1, 1)) == 9
    assert entries_of((6, 0, 2)) == 13 * 1 * 5


KERNELS = [(kind, each) for kind in ("own", "shared", "class") for each in ("plain", "blocked")]


@pytest.mark.parametrize(("places", "implementation"), sampled(KERNELS, 4))
def test_output_and_gradients_by_kernel(places, implementation):
    at, is_class = PLACES[:1] if places == "shared" else PLACES, places == "class"
    entries = np.stack([formulas.offset_entries(x, x, FARTHEST, is_class) for x in at])
    count = COUNT + (3 if is_class else 0)
    entries = np.broadcast_to(entries, (B, T, T))
    arrays = {
        "query": numbers(B, T, N, 6),
        "key": numbers(B, T, K, 6, seed=1),
        "value": numbers(B, T, K, 5, seed=2),
        "table": numbers(count, N, seed=3),
    }
    bias = np.moveaxis(arrays["table"][entries], -1, 1)
    named = {name: arrays[name] for name in ("query", "key", "value")}
    named["seen"] = reference.visible(B, N, T, T, causal=True)
    upstream = numbers(B, T, N, 5, seed=4)
    expected, _ = reference.attention(**named, bias=bias)
    gradients = reference.attention_gradients(**named, bias=bias, upstream=upstream)
    given = with_class_token(tensor(at)) if is_class else tensor(at)

    def ours(query, key, value, table):
        made = GridBias(table, given, given, FARTHEST, is_class)
        mask = AttentionMask(causal=True)
        return (api.attend(query, key, value, mask, biases=[made], implementation=implementation),)

    with block_size(4):
        (output,), found = value_and_gradients(
            ours, {name: tensor(x) for name, x in arrays.items()}, tensor(upstream)
        )
    np.testing.assert_allclose(output, expected, atol=1e-5)
    for name in ("query", "key", "value"):
        np.testing.assert_allclose(found[name], gradients[name], atol=2e-5)
    by_entry = np.zeros((count, N))
    np.add.at(by_entry, entries, np.moveaxis(gradients["bias"], 1, -1))
    np.testing.assert_allclose(found["table"], by_entry, atol=5e-5)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="other backends know lengths")
def test_unknown_lengths():
    import tensorflow as tf

    table = tensor(numbers(COUNT, N, seed=3))

    @tf.function(
        input_signature=[
            tf.TensorSpec((None, None, N, 6)),
            tf.TensorSpec((None, None, K, 6)),
            tf.TensorSpec((None, None, 2), tf.int32),
        ]
    )
    def attend(query, key, at):
        with tf.GradientTape() as tape:
            tape.watch(table)
            made = GridBias(table, at, at, FARTHEST)
            output = api.attend(
                query, key, key, AttentionMask(), biases=[made], implementation="blocked"
            )
            total = tf.reduce_sum(output**2)
        return output, tape.gradient(total, table)

    query, key = tensor(numbers(B, T, N, 6)), tensor(numbers(B, T, K, 6, seed=1))
    with block_size(4):
        output, gradient = attend(query, key, tensor(PLACES))
    entries = np.stack([formulas.offset_entries(x, x, FARTHEST) for x in PLACES])
    bias = np.moveaxis(to_numpy(table)[entries], -1, 1)
    named = {"query": to_numpy(query), "key": to_numpy(key), "value": to_numpy(key)}
    named["seen"] = np.ones((B, N, T, T), bool)
    expected, _ = reference.attention(**named, bias=bias)
    np.testing.assert_allclose(to_numpy(output), expected, atol=1e-5)
    found = reference.attention_gradients(**named, bias=bias, upstream=2 * expected)
    by_entry = np.zeros((COUNT, N))
    np.add.at(by_entry, entries, np.moveaxis(found["bias"], 1, -1))
    np.testing.assert_allclose(to_numpy(gradient), by_entry, atol=1e-4)


# In layers --------------------------------------------------------------------------------------


def expected_output(layer, x, places):
    weights = weights_of(layer)
    heads = [layer_reference.project(weights, name, x) for name in ("query", "key", "value")]
    table = to_numpy(layer.position.table.value)
    options = layer.position.max_distance, layer.position.class_token
    entries = [formulas.offset_entries(at, at, *options) for at in places]
    bias = np.moveaxis(table[np.stack(entries)], -1, 1)
    seen = np.ones((len(x), N, *bias.shape[2:]), bool)
    found, _ = reference.attention(*heads, seen=seen, bias=np.broadcast_to(bias, seen.shape))
    output = np.tensordot(found, weights["attention_output/kernel"].astype(float), 2)
    return output + weights["attention_output/bias"]


@pytest.mark.parametrize("flash", [False, True])
def test_windows_of_images_have_the_indices_of_rows_and_columns(flash):
    position = RelativePosition(max_distance=(2, 4), axes=2)
    layer = ka.MultiHeadAttention(N, 6, position=position, flash_attention=flash)
    windows = numbers(2, 3, 5, D).astype("float32")
    layer.build(windows.shape)
    assert tuple(position.table.shape) == (5 * 9, N)
    randomize(layer)
    grid = np.stack(np.meshgrid(np.arange(3), np.arange(5), indexing="ij"), -1).reshape(1, 15, 2)
    flat = windows.reshape(2, 15, D)
    expected = expected_output(layer, flat, grid).reshape(windows.shape)
    with block_size(4):
        np.testing.assert_allclose(to_numpy(layer(tensor(windows))), expected, atol=1e-5)
        rows = ka.MultiHeadAttention(N, 6, position=position, flash_attention=flash)
        rows.build(flat.shape)
        rows.set_weights(layer.get_weights())
        found = to_numpy(rows(tensor(flat), positions=grid))
    np.testing.assert_allclose(found.reshape(windows.shape), expected, atol=1e-5)


def test_real_positions_count_without_their_fraction():
    layer = ka.MultiHeadAttention(N, 6, position=RelativePosition(max_distance=3, axes=2))
    x = numbers(B, T, D).astype("float32")
    layer.build(x.shape)
    randomize(layer)
    at = PLACES + np.random.default_rng(7).integers(0, 8, PLACES.shape) / 8.0
    expected = expected_output(layer, x, at)
    np.testing.assert_allclose(to_numpy(layer(tensor(x), positions=at)), expected, atol=1e-5)


@pytest.mark.parametrize("flash", [False, True])
def test_a_class_token_has_entries_of_its_own(flash, tmp_path):
    position = RelativePosition(max_distance=FARTHEST, axes=2, class_token=True)
    layer = ka.MultiHeadAttention(N, 6, position=position, flash_attention=flash)
    x = numbers(B, T, D).astype("float32")
    inputs, places = keras.Input((T, D)), keras.Input((T, 2), dtype="int32")
    model = keras.Model([inputs, places], layer(inputs, positions=places))
    assert tuple(position.table.shape) == (COUNT + 3, N)
    randomize(layer)
    expected = expected_output(layer, x, PLACES)
    given = [tensor(x), tensor(PLACES, "int32")]
    with block_size(4):
        found = to_numpy(model(given))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    other = PLACES.copy()
    other[:, 0] = 99  # is not read
    np.testing.assert_allclose(to_numpy(layer(tensor(x), positions=other)), expected, atol=1e-5)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.layers[-1].position.get_config() == position.get_config()
    np.testing.assert_allclose(to_numpy(loaded(given)), found, atol=1e-6)
    copy = keras.models.model_from_json(model.to_json())
    copy.set_weights(model.get_weights())
    np.testing.assert_allclose(to_numpy(copy(given)), found, atol=1e-6)


def test_a_class_token_needs_positions():
    position = RelativePosition(max_distance=2, axes=2, class_token=True)
    layer = ka.MultiHeadAttention(N, 6, position=position)
    with pytest.raises(ValueError, match=r"class token and needs `positions`.*positions=None"):
        layer(tensor(numbers(2, 3, 5, D)))


def test_files_copies_and_pruned_heads(tmp_path):
    inputs = keras.Input((3, 5, D))
    position = RelativePosition(max_distance=(2, 4), axes=2)
    layer = ka.MultiHeadAttention(N, 6, position=position, name="attention")
    model = keras.Model(inputs, layer(inputs))
    randomize(layer)
    x = numbers(B, 3, 5, D).astype("float32")
    expected = predicted(model, x)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(predicted(loaded, x), expected, atol=1e-6)
    config = position.get_config()
    again = RelativePosition.from_config(config)
    assert again.get_config() == config
    assert again.max_distance == (2, 4)
    assert again.axes == 2
    pruned = ka.prune_heads(model, {"attention": [1]})
    table = to_numpy(pruned.layers[-1].position.table.value)
    np.testing.assert_array_equal(table, np.delete(to_numpy(position.table.value), 1, axis=1))


def test_one_axis_is_what_it_was():
    position = RelativePosition()
    assert (position.num_buckets, position.max_distance, position.axes) == (32, 128, 1)
    assert "axes" not in position.get_config()


WRONG = {
    "axes": ({"axes": 0}, "`axes` must be an integer from 1 to 4.*axes=0"),
    "buckets": (
        {"axes": 2, "num_buckets": 32},
        "`num_buckets` must be left out. Received: num_buckets=32",
    ),
    "negative": ({"axes": 2, "max_distance": -1}, "at least 0.*max_distance=-1"),
    "three": ({"axes": 2, "max_distance": (1, 2, 3)}, r"one for each of 2 axes.*\(1, 2, 3\)"),
    "real": ({"axes": 2, "max_distance": (1, 2.5)}, "one for each of 2 axes.*2.5"),
    "large": ({"axes": 2, "max_distance": 2000}, "must be at most 4194304.*2000"),
    "class token": ({"class_token": True}, "`class_token` is for positions of several `axes`"),
    "flag": ({"axes": 2, "class_token": 2}, "`class_token` must be True or False. Received.*=2"),
    "one axis": ({"max_distance": (1, 2)}, "`max_distance` must be an integer greater"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_refused(name):
    options, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        RelativePosition(**options)
