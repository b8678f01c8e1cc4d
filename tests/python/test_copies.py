"""Copies of models: what is frozen, quantised, shared or hidden in other layers."""

import keras
import numpy as np
import pytest
from keras import layers

from backends import JIT, to_numpy
from kerasattention import (
    GroupQueryAttention,
    MultiHeadAttention,
    RelativePosition,
    attention_scores,
    convert_attention,
    enable_lora,
    head_importance,
    prune_heads,
)
from kerasattention.models.scores import with_our_layers

B, T, D, N, H = 3, 5, 6, 2, 7
KINDS = {"keras": layers.MultiHeadAttention, "ours": MultiHeadAttention}
KERAS_LAYERS = (layers.MultiHeadAttention, layers.GroupQueryAttention)
BOTH = pytest.mark.parametrize("kind", KINDS)


def numbers(*shape):
    return np.random.default_rng(1).normal(size=shape).astype("float32")


def model_of(layer, *, head=None, inner=False):
    """An attention layer and a Dense, the former in a model of its own if asked for."""
    inputs = keras.Input((T, D))
    if inner:
        inside = keras.Input((T, D))
        y = keras.Model(inside, layer(inside, inside), name="inner")(inputs)
    else:
        y = layer(inputs, inputs)
    return keras.Model(inputs, (head or layers.Dense(3, name="head"))(y))


def predicted(model, x=None):
    return to_numpy(model(numbers(B, T, D) if x is None else x, training=False))


def places(variables):
    """The last parts of paths, of weights that can be trained at all."""
    return sorted("/".join(v.path.split("/")[-2:]) for v in variables)


def copies(model):
    if any(isinstance(layer, KERAS_LAYERS) for layer in model._flatten_layers()):
        return {"converted": convert_attention(model)}
    return {"merged": convert_attention(model, 1), "pruned": prune_heads(model, {"a": [0]})}


def freeze(model, what):
    inner = "inner" in [layer.name for layer in model.layers]
    attention = (model.get_layer("inner") if inner else model).get_layer("a")
    if what == "layer":
        attention.trainable = False
    elif what == "sublayer":
        attention._query_dense.trainable = False
    elif what == "weight":
        attention._value_dense.bias.trainable = False
    elif what == "dense":
        model.get_layer("head").trainable = False
    elif what == "model":
        model.trainable = False
    elif what == "inner":
        model.get_layer("inner").trainable = False
    elif what == "all but one":
        attention.trainable = False
        attention._key_dense.trainable = True


CASES = ["sublayer", "weight", "dense", "model", "all but one", "inner", "inner layer"]


# Frozen --------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("what", CASES)
def test_copies_keep_what_is_frozen(kind, what):
    inner = what.startswith("inner")
    model = model_of(KINDS[kind](N, H, name="a"), inner=inner)
    freeze(model, what.removeprefix("inner ") if " " in what else what)
    expected = places(model.trainable_weights)
    assert len(expected) < 10
    for name, copy in copies(model).items():
        assert places(copy.trainable_weights) == expected, name
        assert copy.trainable == model.trainable
    # And the source is as it was.
    assert places(model.trainable_weights) == expected


@BOTH
def test_a_layer_made_frozen_is_frozen_in_every_copy(kind, tmp_path):
    model = model_of(KINDS[kind](N, H, name="a", trainable=False))
    made = copies(model)
    if kind == "ours":
        model.save(tmp_path / "model.keras")
        made |= {
            "made": model,
            "clone_model": keras.models.clone_model(model),
            "json": keras.models.model_from_json(model.to_json()),
            "file": keras.models.load_model(tmp_path / "model.keras"),
        }
    else:
        made["for maps"] = with_our_layers(model)
    for name, copy in made.items():
        assert places(copy.trainable_weights) == ["head/bias", "head/kernel"], name
    copy = next(iter(made.values()))
    copy.get_layer("a").trainable = True
    assert len(copy.trainable_weights) == 10


def test_training_a_copy_leaves_frozen_weights():
    model = model_of(layers.MultiHeadAttention(N, H, name="a"))
    model.get_layer("a").trainable = False
    model.compile("sgd", "mse", jit_compile=JIT)
    copy = convert_attention(model)
    before = copy.get_layer("a").get_weights()
    copy.fit(numbers(B, T, D), numbers(B, T, 3), verbose=0)
    for old, new in zip(before, copy.get_layer("a").get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert len(copy.optimizer.variables) <= len(model.optimizer.variables)


def test_importance_leaves_the_model_frozen():
    model = model_of(layers.MultiHeadAttention(N, H, name="a"))
    model.get_layer("a").trainable = False
    assert head_importance(model, numbers(B, T, D), numbers(B, T, 3), loss="mse")["a"].shape == (N,)
    assert places(model.trainable_weights) == ["head/bias", "head/kernel"]


# Quantised, with LoRA, beside a Lambda -------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "change"), [("mha", "int8 and lora"), ("gqa", "int4"), ("gqa", "lora")]
)
def test_keras_layers_that_were_changed_are_converted_as_they_are(kind, change):
    mha, gqa = KERAS_LAYERS
    model = model_of(mha(N, H, name="a") if kind == "mha" else gqa(H, N, 1, name="a"))
    if "int" in change:
        model.quantize(change.split()[0])
    if "lora" in change:
        for dense in (model.get_layer("a")._query_dense, model.get_layer("a")._value_dense):
            dense.enable_lora(2, lora_alpha=3.0)
            dense.lora_kernel_b.assign(numbers(2, H))
    copy = convert_attention(model)
    assert not [x for x in copy._flatten_layers() if isinstance(x, KERAS_LAYERS)]
    np.testing.assert_allclose(predicted(copy), predicted(model), atol=1e-5)
    assert places(copy.trainable_weights) == places(model.trainable_weights)
    # The order that a decoder follows.
    assert [v.name for v in copy.weights] == [v.name for v in model.weights]
    assert attention_scores(model, numbers(B, T, D))[0].weights.shape == (B, N, T, T)


def test_our_layers_with_lora_are_copied_and_not_merged():
    model = model_of(MultiHeadAttention(N, H, name="a"))
    enable_lora(model, 2)
    model.get_layer("a").projection("query").lora_kernel_b.assign(numbers(2, H))
    copy = convert_attention(model)
    np.testing.assert_allclose(predicted(copy), predicted(model), atol=1e-6)
    assert places(copy.trainable_weights) == places(model.trainable_weights)
    with pytest.raises(ValueError, match=r"'a' cannot be merged: it has LoRA.*before LoRA"):
        convert_attention(model, 1)
    with pytest.raises(ValueError, match=r"quantised layer or one with LoRA.*before.*'a'"):
        prune_heads(model, {"a": [0]})
    quantised = model_of(MultiHeadAttention(N, H, name="b"))
    quantised.quantize("int8")
    with pytest.raises(ValueError, match=r"'b' cannot be merged: it is quantised \(int8\).*before"):
        convert_attention(quantised, 1)


def test_a_lambda_and_functions_without_names_are_copied():
    factor = keras.ops.convert_to_tensor(2.0)
    inputs = keras.Input((T, D))
    x = layers.Lambda(lambda z, shift: factor * z + shift, arguments={"shift": 0.5})(inputs)
    x = layers.MultiHeadAttention(N, H)(x, x)
    model = keras.Model(inputs, layers.Dense(3, activation=lambda z: z * z)(x))
    np.testing.assert_allclose(predicted(convert_attention(model)), predicted(model), atol=1e-5)
    assert attention_scores(model, numbers(B, T, D))[0].weights.shape == (B, N, T, T)


# Inside of other layers ----------------------------------------------------------------


@BOTH
def test_attention_in_time_distributed_is_exchanged(kind):
    inner = model_of(KINDS[kind](N, H, name="a"))
    inner.get_layer("a").trainable = False
    inputs = keras.Input((4, T, D))
    model = keras.Model(inputs, layers.TimeDistributed(inner, name="steps")(inputs))
    x = numbers(B, 4, T, D)
    copy, merged = convert_attention(model), convert_attention(model, 1)
    np.testing.assert_allclose(predicted(copy, x), predicted(model, x), atol=1e-5)
    for made, kv_heads in ((copy, N), (merged, 1)):
        layer = made.get_layer("steps").layer.get_layer("a")
        assert layer.heads.key_value == kv_heads
        assert places(made.trainable_weights) == ["head/bias", "head/kernel"]
    assert prune_heads(model, {"a": [1]}).get_layer("steps").layer.get_layer("a").num_heads == 1


class Block(keras.layers.Layer):
    def __init__(self, kind="keras", late=False, **kwargs):
        super().__init__(**kwargs)
        self.kind, self.late = kind, late
        self.attention = None if late else KINDS[kind](N, H, name="inside")

    def build(self, shape):
        if self.late:
            self.attention = KINDS[self.kind](N, H, name="inside")

    def call(self, x):
        return x + self.attention(x, x)

    def get_config(self):
        return {**super().get_config(), "kind": self.kind, "late": self.late}


def test_attention_in_a_layer_of_ones_own_is_refused_by_name():
    def of(layer):
        inputs = keras.Input((T, D))
        return keras.Model(inputs, MultiHeadAttention(N, H, name="beside")(layer(inputs)))

    refused = r"'inside' \(MultiHeadAttention\) stands inside of 'block' \(Block\).*Functional"
    theirs, ours = of(Block(name="block")), of(Block("ours", name="block"))
    calls = [
        lambda: convert_attention(theirs),
        lambda: convert_attention(theirs, 1),
        lambda: convert_attention(ours, 1),
        lambda: attention_scores(theirs, numbers(B, T, D)),
        lambda: prune_heads(ours, {"inside": [0]}),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=refused):
            call()
    # Nothing is to be exchanged there.
    np.testing.assert_allclose(predicted(convert_attention(ours)), predicted(ours), atol=1e-6)
    pruned = prune_heads(ours, {"beside": [0]})
    assert pruned.get_layer("beside").num_heads == 1
    unbuilt = keras.Sequential([Block(late=True, name="block"), layers.Dense(3)])
    with pytest.raises(ValueError, match=r"'block' \(Block\) is not built.*model.build"):
        convert_attention(unbuilt, 1)
    unbuilt.build((None, T, D))
    with pytest.raises(ValueError, match=refused):
        convert_attention(unbuilt, 1)


def test_attention_that_only_a_function_knows_and_subclasses_are_refused():
    hidden = layers.MultiHeadAttention(N, H, name="hidden")
    inputs = keras.Input((T, D))
    model = keras.Model(inputs, layers.Lambda(lambda z: hidden(z, z), name="f")(inputs))
    with pytest.raises(ValueError, match=r"'hidden'.*stands inside of 'f'"):
        convert_attention(model)

    class Mine(layers.MultiHeadAttention):
        pass

    with pytest.raises(ValueError, match=r"'mine' is a Mine.*its own code would be lost"):
        convert_attention(model_of(Mine(N, H, name="mine")))


def test_what_cannot_be_copied_is_named():
    class Own(layers.Layer):
        def __init__(self, size):
            super().__init__(name="own")
            self.size = size

        def call(self, x):
            return x

    inputs = keras.Input((T, D))
    model = keras.Model(inputs, layers.MultiHeadAttention(N, H)(Own(3)(inputs), inputs))
    with pytest.raises(ValueError, match=r"'own' \(Own\) cannot be copied.*get_config"):
        convert_attention(model)


# A table that layers share -------------------------------------------------------------


def test_a_shared_table_stays_shared_in_every_copy(tmp_path):
    table = RelativePosition(8, 9)
    inputs = keras.Input((T, D))
    x = MultiHeadAttention(N, H, position=table, name="a")(inputs)
    model = keras.Model(inputs, GroupQueryAttention(H, N, 1, position=table, name="b")(x))
    model.save(tmp_path / "model.keras")
    text = model.to_json()
    made = [keras.models.clone_model(model), keras.models.clone_model(model)]
    made += [keras.models.clone_model(made[0])]
    # A layer copied alone does not come between.
    alone = MultiHeadAttention.from_config(model.get_layer("a").get_config())
    made += [keras.models.clone_model(model), keras.models.model_from_json(text)]
    made += [keras.models.model_from_json(text), keras.Model.from_config(model.get_config())]
    made += [keras.models.load_model(tmp_path / "model.keras"), convert_attention(model)]
    tables = [model.get_layer("a").position, alone.position]
    for copy in made:
        first, second = (copy.get_layer(name).position for name in "ab")
        assert first is second
        assert len(copy.weights) == len(model.weights)
        assert not any(first is other for other in tables)
        tables.append(first)
        copy.set_weights(model.get_weights())
        np.testing.assert_allclose(predicted(copy), predicted(model), atol=1e-6)
    for name in "ab":
        assert made[0].get_layer(name).get_config() == model.get_layer(name).get_config()
