"""The importance of heads."""

import keras
import numpy as np
import pytest

import kerasattention
from backends import predicted, to_numpy
from classifiers import classifier, gqa, keras_gqa, mha


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


def test_examples_without_answers_and_losses_that_are_not_one_are_refused(data):
    model, (x, y) = classifier(gqa), data
    with pytest.raises(ValueError, match=r"as many examples\. Received: 5, 4"):
        kerasattention.head_importance(model, x, y[:4])
    with pytest.raises(ValueError, match=r"`loss` must be one Keras loss.*loss=\['mse'\]"):
        kerasattention.head_importance(model, x, y, loss=["mse"])
