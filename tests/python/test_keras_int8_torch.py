"""Keras's int8 products on torch's CPU, overridden in float32: the same whole numbers."""

import keras
import numpy as np
import pytest
import torch

from kerasattention import GroupQueryAttention, _keras
from kerasattention._keras import _EXACT_DEPTH, override_int8_products
from kerasattention.layers.context import AttentionContext, attention_context

RNG = np.random.default_rng(5)


def whole(*shape):
    return RNG.integers(-128, 128, shape, dtype="int8")


PRODUCTS = {
    "dense": ("abc,cd->abd", (2, 3, 5), (5, 7)),
    "heads": ("abc,cde->abde", (2, 3, 5), (5, 7, 11)),
    "output": ("abcd,cde->abe", (2, 3, 5, 7), (5, 7, 11)),
    "deep": ("ab,bc->ac", (2, 2 * _EXACT_DEPTH + 3), (2 * _EXACT_DEPTH + 3, 3)),
    "another order": ("abc,cde->adbe", (2, 3, 5), (5, 7, 11)),
    "several batches": ("abc,acd->abd", (2, 3, 5), (2, 5, 7)),
}


@pytest.mark.parametrize("case", PRODUCTS.values(), ids=PRODUCTS.keys())
def test_sums_are_those_of_whole_numbers(case):
    equation, left, right = case
    left, right = whole(*left), whole(*right)
    expected = np.einsum(equation, left.astype("int64"), right.astype("int64"))
    found = keras.ops.einsum(equation, torch.tensor(left), torch.tensor(right))
    assert found.dtype == torch.int32
    np.testing.assert_array_equal(found.numpy(), expected)
    if equation in ("abc,cd->abd", "ab,bc->ac", "abc,acd->abd"):
        found = keras.ops.matmul(torch.tensor(left), torch.tensor(right))
        assert found.dtype == torch.int32
        np.testing.assert_array_equal(found.numpy(), expected)


def test_the_largest_sums_stay_exact():
    """-128 * -128 in every place, so that a block's sum is 2^24 itself, and one more product."""
    left = torch.full((1, _EXACT_DEPTH + 1), -128, dtype=torch.int8)
    found = keras.ops.matmul(left, left.T)
    assert found.item() == 128 * 128 * (_EXACT_DEPTH + 1)
    odd = left.clone()
    odd[0, 0] = -127  # 2^24 - 128 and then 128 * 128
    assert keras.ops.matmul(odd, left.T).item() == 128 * 128 * _EXACT_DEPTH + 127 * 128


def test_layers_of_int8_give_the_same_bits_as_within_a_context(monkeypatch):
    """A context, such as a decoder's, leaves products to Keras."""
    inputs = keras.Input((5, 12))
    x = GroupQueryAttention(4, 6, 2)(inputs, use_causal_mask=True)
    model = keras.Model(inputs, keras.layers.Dense(7, activation="gelu")(x))
    model.quantize("int8")
    x = RNG.normal(size=(2, 5, 12)).astype("float32")
    depths, original = [], _keras._exact_product

    def spy(left, right, axes):
        depths.append((right.shape, axes))
        return original(left, right, axes)

    monkeypatch.setattr(_keras, "_exact_product", spy)
    ours = model(x, training=False)
    assert [axes for _, axes in depths] == [1, 1, 1, 2, 1]  # query, key, value, output, dense
    with attention_context(AttentionContext()):
        keras_own = model(x, training=False)
    assert len(depths) == 5
    assert torch.equal(ours, keras_own)


def test_other_products_are_left_to_keras():
    for left, right in (("int8", "int32"), ("float32", "float32"), ("int8", "float32")):
        x = keras.ops.cast(np.ones((2, 3)), left)
        y = keras.ops.cast(np.ones((3, 5)), right)
        found = keras.ops.matmul(x, y)
        assert str(found.dtype) == f"torch.{keras.backend.result_type(left, right)}"
        assert (found == 3).all()
    empty = torch.ones((0, 3), dtype=torch.int8)
    assert keras.ops.matmul(empty, torch.ones((3, 5), dtype=torch.int8)).shape == (0, 5)
    assert (keras.ops.matmul(empty.T, empty) == 0).all()
    vector = torch.ones(3, dtype=torch.int8)
    assert keras.ops.matmul(vector, vector).item() == 3


def test_the_override_is_made_once():
    asked = []
    override_int8_products(unless=lambda: asked.append(True))  # by now it changes nothing
    left = torch.full((1, 2), 3, dtype=torch.int8)
    assert keras.ops.matmul(left, left.T).item() == 18
    assert asked == []
