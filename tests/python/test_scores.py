"""Attention maps of whole models."""

import keras
import numpy as np
import pytest

import kerasattention
from backends import to_numpy
from classifiers import T, classifier, gqa, keras_mha, mha, nested
from kerasattention import checks


@pytest.mark.parametrize("make", [mha, gqa, keras_mha])
def test_maps_are_the_scores_the_layer_itself_returns(make, data):
    model = classifier(make)
    maps = kerasattention.attention_scores(model, data[0])
    layer = model.get_layer("attention_0")
    x = model.layers[1](keras.ops.convert_to_tensor(data[0]))
    _, expected = layer(x, x, return_attention_scores=True)
    expected = to_numpy(expected).copy()
    expected[0, :, 5:] = 0.0  # padded queries, where Keras's layer has a mean
    np.testing.assert_allclose(maps[0].weights, expected, atol=1e-6)
    assert [m.layer for m in maps] == ["attention_0", "attention_1"]


def test_maps_of_chosen_layers_heads_and_rows(data):
    model = classifier(gqa)
    whole = kerasattention.attention_scores(model, data[0])
    part = kerasattention.attention_scores(
        model, data[0], layers=["attention_1"], heads=np.array([4, 1]), rows=[6, 2, 3]
    )
    assert len(part) == 1
    np.testing.assert_allclose(
        part[0].weights, whole[1].weights[:, [4, 1]][:, :, [6, 2, 3]], atol=1e-6
    )
    assert part[0].heads == (4, 1)
    assert part[0].rows == (6, 2, 3)


def test_maps_leave_the_model_as_it_was(data):
    model = classifier(keras_mha)
    before, weights = model.predict(data[0], verbose=0), model.get_weights()
    kerasattention.attention_scores(model, data[0])
    np.testing.assert_array_equal(model.predict(data[0], verbose=0), before)
    for a, b in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": ["attention_7"]}, "attention_7.*attention_0"),
        ({"layers": [2]}, "2.*attention_0"),
        ({"heads": [6]}, "between 0 and 5"),
        ({"rows": [0, 11]}, "`rows` must lie between 0 and 6 in layer .*11"),
        ({"rows": [-1]}, "`rows` must lie between 0 and 6 in layer .*-1"),
        ({"rows": [5, 6, 7]}, "`rows` must lie between 0 and 6 in layer .*: 7"),
    ],
)
def test_maps_refuse_what_the_model_lacks(options, message, data):
    with pytest.raises(ValueError, match=message):
        kerasattention.attention_scores(classifier(gqa), data[0], **options)


def test_maps_need_an_attention_layer(data):
    model = keras.Sequential([keras.Input((T,)), keras.layers.Dense(2, name="only")])
    with pytest.raises(ValueError, match="only"):
        kerasattention.attention_scores(model, data[0])


def test_maps_say_whether_they_are_of_self_attention():
    x, y = keras.Input((5, 6)), keras.Input((7, 6))
    own = mha(name="own")(x)
    model = keras.Model([x, y], mha(name="cross")(own, y))
    arrays = [np.ones((2, 5, 6), "float32"), np.ones((2, 7, 6), "float32")]
    maps = kerasattention.attention_scores(model, arrays)
    assert [(m.layer, m.self_attention) for m in maps] == [("own", True), ("cross", False)]


def test_indices_that_are_not_there_are_in_the_error():
    error = checks.OutOfRangeError("heads", 7, 5, "a")
    assert (error.argument, error.index, error.count, error.layer) == ("heads", 7, 5, "a")
    assert str(error) == "`heads` must lie between 0 and 4 in layer 'a'. Received: 7"
    with pytest.raises(checks.UnknownLayerError) as found:
        kerasattention.attention_scores(classifier(gqa), np.zeros((1, T)), layers=[2])
    assert found.value.layer == 2
    assert found.value.known == ["attention_0", "attention_1"]


def test_layers_of_one_name_are_told_by_their_index(data):
    model = nested(mha)
    whole = kerasattention.attention_scores(model, data[0])
    assert [m.layer for m in whole] == ["attention_0", "attention_0"]
    for index in (0, 1):
        (part,) = kerasattention.attention_scores(model, data[0], layers=[index])
        np.testing.assert_array_equal(part.weights, whole[index].weights)
    with pytest.raises(ValueError, match="`layers` must name one attention layer each"):
        kerasattention.attention_scores(model, data[0], layers=["attention_0"])
