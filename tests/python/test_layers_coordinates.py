"""Positions of several axes in calls of the layers: which are taken, and which are refused."""

import keras
import numpy as np
import pytest

import kerasattention as ka
from backends import tensor, to_numpy
from kerasattention.layers.axes import AxisFold
from kerasattention.layers.coordinates import coordinates_of
from kerasattention.layers.inputs import LayerCall

B, T, D, H = 2, 7, 5, 6
X = np.random.default_rng(0).normal(size=(B, T, D)).astype("float32")
PLACES = np.random.default_rng(1).integers(0, 9, (B, T, 2))
AXIAL = {"type": "axial", "sizes": (1, 2)}


def layer(**options):
    return ka.GroupQueryAttention(H, 2, 1, **options)


def bands():
    return ka.RotaryPosition(sections=(1, 2))


def test_coordinates_of_a_call():
    fold = AxisFold((1,), 3)
    x = tensor(X)
    assert coordinates_of(LayerCall(x), fold, None) is None
    assert coordinates_of(LayerCall(x), fold, bands()) is None
    assert coordinates_of(LayerCall(x, positions=tensor(PLACES[..., 0])), fold, bands()) is None
    found = coordinates_of(LayerCall(x, positions=tensor(PLACES)), fold, bands())
    np.testing.assert_array_equal(to_numpy(found), PLACES)
    image = tensor(np.zeros((3, 2, 4, D)))
    found = to_numpy(coordinates_of(LayerCall(image), AxisFold((1, 2), 4), bands()))
    assert found.tolist() == [[[0, 0], [0, 1], [0, 2], [0, 3], [1, 0], [1, 1], [1, 2], [1, 3]]]


def test_other_axes_are_batch_axes():
    """(B, L, T, D) attended along T: the positions of a sample are those of all its rows."""
    made = ka.MultiHeadAttention(2, H, attention_axes=2, position=bands())
    x = np.random.default_rng(2).normal(size=(B, 3, T, D)).astype("float32")
    found = to_numpy(made(tensor(x), positions=PLACES))
    flat = ka.MultiHeadAttention(2, H, position=bands())
    flat.build((None, T, D))
    flat.set_weights(made.get_weights())
    rows = np.repeat(PLACES, 3, axis=0)
    expected = to_numpy(flat(tensor(x.reshape(-1, T, D)), positions=rows))
    np.testing.assert_allclose(found.reshape(-1, T, D), expected, atol=1e-6)


REFUSED = {
    "no axes": (
        lambda: layer()(X, positions=PLACES),
        r"`positions` must have shape \(B, T\) = \(2, 7\), as the layer's `position` does not take "
        r"several axes. Received: positions of shape \(2, 7, 2\)",
    ),
    "other number": (
        lambda: layer(position=bands())(X, positions=np.zeros((B, T, 3), int)),
        r"\(B, T\) = \(2, 7\) or \(B, T, axes\) = \(2, 7, 2\). Received.*\(2, 7, 3\)",
    ),
    "length": (
        lambda: layer(position=bands())(X, positions=PLACES[:, 1:]),
        r"or \(B, T, axes\) = \(2, 7, 2\). Received.*\(2, 6, 2\)",
    ),
    "cross": (
        lambda: layer(position=bands())(X, X[:, 1:], positions=PLACES),
        r"several axes are for self-attention.*query \(2, 7, 5\), key \(2, 6, 5\)",
    ),
    "cross without": (
        lambda: layer(position=ka.RotaryPosition(sections=AXIAL))(X, X[:, 1:]),
        "several axes are for self-attention",
    ),
    "axial without": (
        lambda: layer(position=ka.RotaryPosition(sections=AXIAL))(X),
        r"has 2 axes and needs `positions` of shape \(B, T, 2\).*Received: positions=None",
    ),
    "axial of one axis": (
        lambda: layer(position=ka.RotaryPosition(sections=AXIAL))(X, positions=PLACES[..., 0]),
        r"needs `positions` of shape \(B, T, 2\).*positions=a tensor of shape \(2, 7\)",
    ),
    "table without": (
        lambda: layer(position=ka.RelativePosition(axes=2, max_distance=3))(X),
        r"needs `positions` of shape \(B, T, 2\)",
    ),
    "segments": (
        lambda: layer(position=bands())(X, segment_ids=PLACES),
        r"`segment_ids` must have shape \(B, T\) = \(2, 7\). Received",
    ),
    "not finite": (
        lambda: layer(position=bands())(X, positions=PLACES / np.inf * np.nan),
        "`positions` must be finite",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_positions_that_do_not_fit_are_refused(name):
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        make()


def test_symbolic_calls_are_checked_too():
    inputs, places = keras.Input((T, D)), keras.Input((T, 3), dtype="int32")
    with pytest.raises(ValueError, match=r"\(B, T, axes\) = \(None, 7, 2\)"):
        layer(position=bands())(inputs, positions=places)
    with pytest.raises(ValueError, match=r"needs `positions` of shape \(B, T, 2\)"):
        layer(position=ka.RotaryPosition(sections=AXIAL))(inputs)


@pytest.mark.parametrize(
    ("positions", "received"),
    [
        (None, "positions=None"),
        (np.zeros((2, T), "int32"), f"positions=a tensor of shape (2, {T}), 1 attended axes"),
    ],
)
def test_the_message_says_what_stands_for_the_axes(positions, received):
    given = {} if positions is None else {"positions": tensor(positions)}
    with pytest.raises(ValueError) as error:
        layer(position=ka.RotaryPosition(sections=AXIAL))(X, **given)
    assert (", 1 attended axes" in str(error.value)) is (positions is not None)
    assert (
        "The layer's `position` has 2 axes and needs `positions` of shape (B, T, 2), or inputs "
        f"with 2 attended axes, of which it takes the indices. Received: {received}"
    ) in str(error.value)
