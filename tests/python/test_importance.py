"""The importance of heads."""

import keras
import numpy as np
import pytest

import kerasattention
from backends import predicted, to_numpy
from classifiers import classifier, gqa, keras_gqa, mha, nested


@pytest.mark.parametrize(
    "make",
    [
        mha,
        # The projections of Keras's grouped layer warn that they lose the mask.
        pytest.param(
            keras_gqa, marks=pytest.mark.filterwarnings("ignore:.*not support masking:UserWarning")
        ),
    ],
)
def test_importance_is_the_slope_of_the_loss(make, data):
    model = classifier(make)
    x, y = data
    found = kerasattention.head_importance(model, x, y, batch_size=2, normalize=False)
    kernel = model.get_layer("attention_1")._output_dense.kernel
    array, loss = to_numpy(kernel), keras.losses.SparseCategoricalCrossentropy(True)

    def losses(gate, head):
        changed = array.copy()
        changed[head] *= gate
        kernel.assign(changed)
        logits = predicted(model, x)
        return np.array([float(loss(y[[i]], logits[[i]])) for i in range(len(y))])

    step = 0.05
    for head in range(array.shape[0]):
        slopes = (losses(1 + step, head) - losses(1 - step, head)) / (2 * step)
        np.testing.assert_allclose(
            found["attention_1"][head], np.abs(slopes).mean(), rtol=0.03, atol=2e-6
        )


def test_normalized_importance_has_length_one(data):
    found = kerasattention.head_importance(classifier(gqa), *data)
    for values in found.values():
        np.testing.assert_allclose(np.linalg.norm(values), 1.0, rtol=1e-6)


def test_inputs_may_be_lists_dictionaries_and_tensors():
    keras.utils.set_random_seed(5)
    sizes = {"query": (3, 6), "value": (5, 6)}
    inputs = {name: keras.Input(size, name=name) for name, size in sizes.items()}
    model = keras.Model(inputs, mha()(inputs["query"], inputs["value"]))
    random = np.random.default_rng(1)
    x = {
        "query": random.normal(size=(7, 3, 6)).astype("float32"),
        "value": random.normal(size=(7, 5, 6)).astype("float32"),
    }
    y = random.normal(size=(7, 3, 6)).astype("float32")

    def measure(x, y):
        return kerasattention.head_importance(model, x, y, loss="mse", batch_size=3)

    ((name, expected),) = measure(x, y).items()
    assert np.ptp(expected) > 0.01
    tensors = {key: keras.ops.convert_to_tensor(value) for key, value in x.items()}
    np.testing.assert_allclose(
        measure(tensors, keras.ops.convert_to_tensor(y))[name], expected, rtol=1e-5
    )
    listed = keras.Model(list(inputs.values()), model.output)
    found = kerasattention.head_importance(listed, list(x.values()), y, loss="mse", batch_size=3)
    np.testing.assert_allclose(found[name], expected, rtol=1e-5)
    with pytest.raises(ValueError, match=r"same number of samples\. Received: 4, 7"):
        measure(x | {"value": x["value"][:4]}, y)


@pytest.mark.parametrize("reduction", ["sum", "sum_over_batch_size", None, "name"])
def test_samples_count_alike_in_every_batch_and_padding_not_at_all(reduction, data):
    """As the loss of each sample by itself, which Keras reduces and masks."""
    model, tokens = classifier(gqa, depth=1, pooled=False), np.array(data[0][:3])
    tokens[0, 4:] = 0  # padding
    y = np.random.default_rng(2).integers(0, 3, tokens.shape)
    loss = keras.losses.MeanSquaredError(reduction="sum" if reduction == "sum" else "mean")
    y = np.eye(3)[y].astype("float32")
    kernel = model.get_layer("attention_0")._output_dense.kernel
    array, slopes = to_numpy(kernel), []
    for head in range(array.shape[0]):
        ends = []
        for gate in (1.1, 0.9):
            changed = array.copy()
            changed[head] *= gate
            kernel.assign(changed)
            outputs = predicted(model, tokens)
            ends.append(
                [float(loss(y[i][real], outputs[i][real])) for i, real in enumerate(tokens != 0)]
            )
        slopes.append(np.abs(np.subtract(*ends) / 0.2).mean())
    kernel.assign(array)
    given = "mse" if reduction == "name" else keras.losses.MeanSquaredError(reduction=reduction)
    for size in (3, 2):
        found = kerasattention.head_importance(
            model, tokens, y, loss=given, batch_size=size, normalize=False
        )
        np.testing.assert_allclose(found["attention_0"], slopes, rtol=0.01, atol=1e-6)


def test_losses_that_are_not_one_are_refused(data):
    with pytest.raises(ValueError, match=r"`loss` must be one Keras loss.*loss=\['mse'\]"):
        kerasattention.head_importance(classifier(gqa), *data, loss=["mse"])


def test_layers_of_one_name_are_refused(data):
    """Their importances would be added up under one name."""
    with pytest.raises(ValueError, match=r"several layers of the names 'attention_0'"):
        kerasattention.head_importance(nested(mha), *data)
