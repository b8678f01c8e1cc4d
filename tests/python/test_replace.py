"""Copies of models with some layers replaced."""

import keras
import numpy as np
import pytest
from keras import layers

from backends import to_numpy
from kerasattention.models.replace import (
    attention_layers,
    check_graph,
    is_functional,
    replace_layers,
)

X = np.random.default_rng(1).normal(size=(2, 3, 5)).astype("float32")


def wide(layer):
    return isinstance(layer, layers.Dense) and layer.units == 7


def tripled(layer):
    """A layer of the same name with three times the weights."""
    return layers.Dense(7, name=layer.name), [3 * x for x in layer.get_weights()]


def nested():
    inner = keras.Sequential([layers.Dense(7, name="inner"), layers.Dense(5)], name="block")
    x = keras.Input((3, 5))
    y = layers.TimeDistributed(layers.Dense(7, name="timed"))(inner(x) + x)
    return keras.Model(x, inner(layers.Dense(5, name="last")(y)))


def predicted(model):
    return to_numpy(model(keras.ops.convert_to_tensor(X)))


def test_layers_are_exchanged_in_nested_models_and_time_distributed():
    model = nested()
    before = predicted(model)
    arrays = [np.array(x) for x in model.get_weights()]
    copy = replace_layers(model, wide, tripled)
    np.testing.assert_array_equal(predicted(model), before)
    found = {path: to_numpy(v.value) for path, v in by_name(copy).items()}
    expected = {path: to_numpy(v.value) for path, v in by_name(model).items()}
    assert found.keys() == expected.keys()
    for path, x in found.items():
        factor = 3 if path[0] in ("inner", "timed") else 1
        np.testing.assert_allclose(x, factor * expected[path], err_msg=str(path))
    # The same numbers as the model with those weights; a layer that is used twice is one.
    names = [path[0] for path in by_name(model)]
    model.set_weights(
        [3 * x if n in ("inner", "timed") else x for n, x in zip(names, arrays, strict=True)]
    )
    np.testing.assert_allclose(predicted(copy), predicted(model), rtol=1e-4, atol=1e-5)


def by_name(model):
    return {tuple(v.path.split("/")[-2:]): v for v in model.weights}


def test_a_copy_without_an_exchange_is_the_model_compiled_alike():
    model = nested()
    model.compile("sgd", "mse")
    copy = replace_layers(model, lambda layer: False, tripled)
    np.testing.assert_array_equal(predicted(copy), predicted(model))
    assert copy.compiled
    assert copy.optimizer is not model.optimizer
    assert not {id(v) for v in copy.weights} & {id(v) for v in model.weights}


class Own(layers.Layer):
    def __init__(self, **options):
        super().__init__(**options)
        self.dense = layers.Dense(7, name="hidden")

    def call(self, x):
        return self.dense(x)


class Wants(layers.Layer):
    """Its config lacks what its constructor takes."""

    def __init__(self, size, **options):
        super().__init__(**options)

    def call(self, x):
        return x

    def get_config(self):
        return {"name": self.name}


def test_what_cannot_be_exchanged_or_copied_is_named():
    model = keras.Sequential([keras.Input((3, 5)), Own(name="own")])
    with pytest.raises(ValueError, match=r"'hidden' \(Dense\) stands inside of 'own' \(Own\)"):
        replace_layers(model, wide, tripled)
    dense = layers.Dense(7, name="enclosed")
    dense.build((None, 3, 5))
    model = keras.Sequential([keras.Input((3, 5)), layers.Lambda(lambda x: dense(x), name="f")])
    with pytest.raises(ValueError, match=r"'enclosed'.*inside of 'f'"):
        replace_layers(model, wide, tripled)
    model = keras.Sequential([keras.Input((3, 5)), Wants(2, name="wants")])
    with pytest.raises(ValueError, match=r"'wants' \(Wants\) cannot be copied.*get_config"):
        replace_layers(model, wide, tripled)


class Subclassed(keras.Model):
    pass


def test_models_whose_graph_is_known():
    functional = nested()
    assert is_functional(functional)
    check_graph(functional)
    check_graph(keras.Sequential())
    assert not is_functional(layers.Dense(2))
    with pytest.raises(ValueError, match=r"Functional or Sequential.*Subclassed"):
        check_graph(Subclassed())
    assert [x.name for x in attention_layers(functional, (layers.TimeDistributed,))] == [
        layer.name for layer in functional.layers if isinstance(layer, layers.TimeDistributed)
    ]
