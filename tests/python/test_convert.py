"""`convert_attention()`: Keras's layers for ours, and fewer key/value heads, against NumPy."""

import keras
import numpy as np
import pytest
from keras import layers

from backends import JIT, predicted, to_numpy
from kerasattention import (
    AlibiPosition,
    GroupQueryAttention,
    MultiHeadAttention,
    RelativePosition,
    convert_attention,
)

VOCABULARY, B, T, D, N, H = 17, 3, 7, 22, 6, 5
KERAS_LAYERS = (layers.MultiHeadAttention, layers.GroupQueryAttention)

KINDS = {
    "Keras's MultiHeadAttention": lambda name: layers.MultiHeadAttention(N, H, name=name),
    "Keras's GroupQueryAttention": lambda name: layers.GroupQueryAttention(H, N, N, name=name),
    "MultiHeadAttention": lambda name: MultiHeadAttention(N, H, name=name),
    "GroupQueryAttention": lambda name: GroupQueryAttention(H, N, N, name=name),
}


def attend(layer, x):
    return layer(x, x, use_causal_mask=True)


def functional(make):
    tokens = keras.Input((None,), dtype="int32")
    x = layers.Embedding(VOCABULARY, D, name="embedding")(tokens)
    for name in ("first", "second"):
        y = attend(make(name), layers.LayerNormalization(name=f"{name}_norm")(x))
        x = layers.Add()([x, layers.Dense(D, name=f"{name}_dense")(y)])
    return keras.Model(tokens, layers.Dense(3, name="head")(x))


def nested(make):
    inside = keras.Input((None, D))
    x = layers.Dense(D, activation="relu", name="inside_dense")(attend(make("first"), inside))
    block = keras.Model(inside, x, name="block")
    rest = keras.Sequential([layers.Dense(D, name="rest")], name="sequential")
    tokens = keras.Input((None,), dtype="int32")
    x = layers.Embedding(VOCABULARY, D, name="embedding")(tokens)
    x = rest(block(block(x)))
    return keras.Model(tokens, attend(make("second"), x))


def one_layer_twice(make):
    layer = make("first")
    tokens = keras.Input((None,), dtype="int32")
    x = layers.Embedding(VOCABULARY, D, name="embedding")(tokens)
    return keras.Model(tokens, attend(layer, x + attend(layer, x)))


FORMS = {"functional": functional, "nested": nested, "one layer twice": one_layer_twice}


def with_weights(model, seed=7):
    """All weights drawn, biases and scales too."""
    random = np.random.default_rng(seed)
    for variable in model.trainable_weights:
        variable.assign(0.25 * random.normal(size=variable.shape))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, jit_compile=JIT)
    return model


def tokens():
    return np.random.default_rng(3).integers(0, VOCABULARY, (B, T)).astype("int32")


def assert_same_output(model, other):
    found, expected = (predicted(m, tokens()) for m in (model, other))
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def by_place(model):
    """The weights by the last parts of their paths, which a copy shares."""
    found = {}
    for variable in model.weights:
        if "seed_generator" not in variable.path:
            found["/".join(variable.path.split("/")[-3:])] = to_numpy(variable)
    return found


def is_merged(place):
    *_, owner, _ = place.split("/")
    return owner in ("key", "value")


def pooled(array, kv_heads, method):
    """Heads are the last axis but one; group k holds the heads from k * G on."""
    group = array.shape[-2] // kv_heads
    out = np.zeros((*array.shape[:-2], kv_heads, array.shape[-1]), array.dtype)
    for k in range(kv_heads):
        heads = [array[..., k * group + i, :] for i in range(group)]
        out[..., k, :] = heads[0] if method == "first" else sum(heads) / group
    return out


# The same heads ------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if "Keras" in kind])
def test_our_layers_take_the_place_of_keras_own(kind, form):
    model = with_weights(FORMS[form](KINDS[kind]))
    before = by_place(model)
    copy = convert_attention(model)
    found = by_place(copy)
    assert list(found) == list(before)
    for place, array in before.items():
        np.testing.assert_array_equal(found[place], array, err_msg=place)
    left = [x for x in copy._flatten_layers() if isinstance(x, KERAS_LAYERS)]
    ours = [x for x in copy._flatten_layers() if type(x).__module__.startswith("kerasattention")]
    assert not left
    assert len({id(x) for x in ours}) == (1 if form == "one layer twice" else 2)
    assert copy.compiled
    assert_same_output(copy, model)
    # The model itself stays Keras's.
    assert any(isinstance(x, KERAS_LAYERS) for x in model._flatten_layers())


def test_options_of_keras_layers_are_kept():
    options = {"dropout": 0.25, "use_bias": False, "seed": 5, "kernel_regularizer": "l2"}

    def make(name):
        return layers.MultiHeadAttention(N, H, value_dim=3, output_shape=D, name=name, **options)

    model = functional(make)
    theirs = model.get_layer("first").get_config()
    ours = convert_attention(model).get_layer("first").get_config()
    assert {name: ours[name] for name in theirs} == theirs


def test_sequential_models():
    model = keras.Sequential(
        [
            keras.Input((T,), dtype="int32"),
            layers.Embedding(VOCABULARY, D),
            keras.Sequential([MultiHeadAttention(N, H, use_causal_mask=True), layers.Dense(D)]),
            GroupQueryAttention(H, N, 3, use_causal_mask=True),
        ]
    )
    with_weights(model)
    copy = convert_attention(model, 3)
    assert isinstance(copy, keras.Sequential)
    inner = copy.layers[1].layers[0]
    assert (inner.num_query_heads, inner.num_key_value_heads) == (N, 3)
    assert inner.use_causal_mask
    # The second has three heads already: it changes nothing.
    for old, new in zip(model.layers[2].weights, copy.layers[2].weights, strict=True):
        np.testing.assert_array_equal(to_numpy(new), to_numpy(old))


# Fewer heads ---------------------------------------------------------------------------


@pytest.mark.parametrize("kv_heads", [1, 2, 3])
@pytest.mark.parametrize("method", ["mean", "first"])
@pytest.mark.parametrize("kind", KINDS)
def test_merged_heads_are_numpys_and_all_else_is_kept(kind, method, kv_heads):
    model = with_weights(nested(KINDS[kind]))
    before, found = by_place(model), by_place(convert_attention(model, kv_heads, method))
    assert list(found) == list(before)
    for place, array in before.items():
        expected = pooled(array, kv_heads, method) if is_merged(place) else array
        np.testing.assert_allclose(found[place], expected, rtol=1e-6, atol=1e-7, err_msg=place)


@pytest.mark.parametrize("kind", ["Keras's MultiHeadAttention", "GroupQueryAttention"])
def test_a_merged_model_is_the_one_whose_groups_have_equal_heads(kind):
    model = with_weights(functional(KINDS[kind]))
    copy = convert_attention(model, 2)
    # The same in the model of six heads: each merged head three times, side by side.
    for name in ("first", "second"):
        layer = model.get_layer(name)
        for dense in (layer._key_dense, layer._value_dense):
            for weight in (dense.kernel, dense.bias):
                merged = pooled(to_numpy(weight), 2, "mean")
                weight.assign(np.repeat(merged, N // 2, axis=-2))
    assert_same_output(copy, model)


def test_random_heads_are_drawn_from_the_seed_with_glorots_limit():
    model = with_weights(functional(KINDS["MultiHeadAttention"]))
    runs = [by_place(convert_attention(model, 2, "random", seed)) for seed in (1, 1, 2)]
    limit = np.sqrt(6.0 / (D + H))
    for place, array in by_place(model).items():
        one, same, other = (run[place] for run in runs)
        np.testing.assert_array_equal(one, same)
        if not is_merged(place):
            np.testing.assert_array_equal(one, array)
        elif place.endswith("bias"):
            np.testing.assert_array_equal(one, np.zeros((2, H)))
        else:
            assert one.shape == (D, 2, H)
            assert 0.9 * limit < np.abs(one).max() <= limit
            assert abs(one.std() - limit / np.sqrt(3.0)) < 0.1 * limit
            assert np.abs(one - other).max() > 0.1 * limit
    drawn = [run["first/key/kernel"] for run in runs[:1]] + [runs[0]["first/value/kernel"]]
    assert np.abs(drawn[0] - drawn[1]).max() > 0.1 * limit


@pytest.mark.parametrize("position", [AlibiPosition, lambda: RelativePosition(8, 9)])
def test_biases_of_query_heads_stay_with_them(position):
    def make(name):
        return MultiHeadAttention(N, H, position=position(), name=name)

    model = with_weights(functional(make))
    expected = convert_attention(model)
    for name in ("first", "second"):
        layer = expected.get_layer(name)
        for kind in ("key", "value"):
            for weight in (layer.projection(kind).kernel, layer.projection(kind).bias):
                weight.assign(np.repeat(pooled(to_numpy(weight), 3, "mean"), 2, axis=-2))
    assert_same_output(convert_attention(model, 3), expected)


def test_a_table_that_layers_share_is_one_in_the_copy():
    shared = RelativePosition(8, 9)
    model = with_weights(functional(lambda name: MultiHeadAttention(N, H, position=shared)))
    for copy in (convert_attention(model), convert_attention(model, 2)):
        tables = {id(v) for v in copy.weights if v.path.endswith("/table")}
        assert len(tables) == 1
        assert len(copy.weights) == len(model.weights)
        first, second = (x for x in copy.layers if hasattr(x, "position"))
        assert first.position is second.position
        assert first.position is not shared
        np.testing.assert_array_equal(to_numpy(first.position.table), to_numpy(shared.table))


def test_a_merged_model_trains():
    model = convert_attention(with_weights(functional(KINDS["Keras's MultiHeadAttention"])), 2)
    before = by_place(model)
    model.fit(tokens(), tokens() % 3, verbose=0)
    moved = [place for place, array in by_place(model).items() if np.any(array != before[place])]
    assert {"first/key/kernel", "first/value/kernel", "second/query/kernel"} <= set(moved)


# What is refused -----------------------------------------------------------------------


def test_what_does_not_fit_is_refused_with_the_way_out():
    model = functional(KINDS["MultiHeadAttention"])
    with pytest.raises(ValueError, match=r"6 key/value heads.*'first'.*one of 1, 2, 3, 6\..*: 4"):
        convert_attention(model, 4)
    with pytest.raises(ValueError, match=r"positive integer\. Received: num_key_value_heads=0"):
        convert_attention(model, 0)
    with pytest.raises(ValueError, match=r"one of \('mean', 'first', 'random'\).*'median'"):
        convert_attention(model, 2, "median")
    wide = functional(lambda name: MultiHeadAttention(N, H, value_dim=3, name=name))
    with pytest.raises(ValueError, match="'first' has value_dim=3"):
        convert_attention(wide, 2)

    class Mine(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ValueError, match="Functional or Sequential"):
        convert_attention(Mine())
