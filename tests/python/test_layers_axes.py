"""Folding of attention axes against NumPy's transpose and reshape."""

import numpy as np
import pytest

from backends import tensor, to_numpy
from kerasattention.layers.axes import (
    AxisFold,
    _product,
    output_equation,
    projection_equation,
    resolve_axes,
)

B, X, Y, Z, N, H = 2, 3, 5, 7, 11, 13
FOLD = AxisFold((1, 3), 5)  # axes X and Z attend, Y belongs to the batch
PLAIN = AxisFold((1,), 3)


def numbers(*shape):
    return np.random.default_rng(1).normal(size=shape).astype("float32")


LIKE = tensor(numbers(B, X, Y, Z, 1))


def same(found, expected):
    np.testing.assert_array_equal(to_numpy(found), expected)


def test_equations_are_products_over_features_and_over_heads():
    x, kernel = numbers(B, X, Y), numbers(Y, N, H)
    heads = np.einsum(projection_equation(3), x, kernel)
    np.testing.assert_allclose(heads, np.tensordot(x, kernel, 1), rtol=1e-4, atol=1e-5)
    equation, made = output_equation(3, 2)
    back = numbers(N, H, 2, 3)
    found = np.einsum(equation, heads, back)
    np.testing.assert_allclose(found, np.tensordot(heads, back, 2), rtol=1e-4, atol=1e-3)
    assert made == "ef"


def test_axes_are_counted_from_either_end():
    assert resolve_axes(None, 5) == (1, 2, 3)
    assert resolve_axes((-2, 1), 5) == (3, 1)
    for axes, rank in (((0,), 4), ((3,), 4), ((-1,), 4), ((-4,), 4)):
        with pytest.raises(ValueError, match=r"between 1 and 2.*axis -?\d"):
            resolve_axes(axes, rank)
    with pytest.raises(ValueError, match="names an axis twice"):
        resolve_axes((1, -3), 4)


def test_tokens_of_the_attended_axes_become_one_length():
    x = numbers(B, X, Y, Z, N, H)
    expected = x.transpose(0, 2, 1, 3, 4, 5).reshape(B * Y, X * Z, N, H)
    folded = FOLD.fold(tensor(x))
    same(folded, expected)
    same(FOLD.unfold(folded, LIKE), x)
    assert (FOLD.lengths(LIKE), FOLD.length(LIKE), FOLD.batches(LIKE)) == ((X, Z), X * Z, (B, Y))


def test_scores_get_the_axes_of_queries_and_keys():
    key = tensor(numbers(B, 2, Y, 3, 1))
    x = numbers(B * Y, N, X * Z, 6)
    same(FOLD.unfold_scores(tensor(x), LIKE, key), x.reshape(B, Y, N, X, Z, 2, 3))


def test_padding_of_every_token_and_of_leading_axes():
    mask = numbers(B, X, Y, Z) > 0
    folded = FOLD.fold_padding(tensor(mask), LIKE, attached=False)
    same(folded, mask.transpose(0, 2, 1, 3).reshape(B * Y, X * Z))
    same(FOLD.unfold_padding(folded, LIKE), mask)
    assert FOLD.fold_padding(None, LIKE, attached=False) is None


def test_padding_of_two_axes_is_of_the_attended_one_unless_a_tensor_carries_it():
    fold, like = AxisFold((2,), 4), tensor(numbers(B, X, Y, 1))
    given = numbers(B, Y) > 0
    expected = np.repeat(given, X, axis=0)
    same(fold.fold_padding(tensor(given), like, attached=False), expected)
    carried = numbers(B, X) > 0
    expected = np.broadcast_to(carried[:, :, None], (B, X, Y)).reshape(B * X, Y)
    same(fold.fold_padding(tensor(carried), like, attached=True), expected)


def test_integers_of_tokens_serve_all_batch_axes():
    x = np.arange(B * X * Z).reshape(B, X * Z)
    same(FOLD.fold_tokens(tensor(x), LIKE), np.repeat(x, Y, axis=0))
    assert FOLD.fold_tokens(None, LIKE) is None


def test_masks_of_scores_get_missing_axes_before_the_queries():
    key = tensor(numbers(B, 2, Y, 3, 1))
    bare = numbers(X, Z, 2, 3)
    same(FOLD.fold_scores(tensor(bare), LIKE, key), bare.reshape(1, 1, X * Z, 6))
    batched = numbers(B, Y, X, 1, 2, 3)
    expected = np.broadcast_to(batched, (B, Y, X, Z, 2, 3)).reshape(B * Y, 1, X * Z, 6)
    same(FOLD.fold_scores(tensor(batched), LIKE, key), expected)
    partial = numbers(B, 1, N, X, Z, 2, 3)
    expected = np.repeat(partial, Y, axis=1).reshape(B * Y, N, X * Z, 6)
    same(FOLD.fold_scores(tensor(partial), LIKE, key), expected)


def test_three_axes_are_left_as_they_are():
    x, mask = tensor(numbers(B, X, N, H)), tensor(numbers(B, X) > 0)
    like = tensor(numbers(B, X, 1))
    assert PLAIN.fold(x) is x
    assert PLAIN.unfold(x, like) is x
    assert PLAIN.unfold_scores(x, like, like) is x
    assert PLAIN.unfold_padding(mask, like) is mask
    assert tuple(PLAIN.fold_scores(tensor(numbers(B, X, X)), like, like).shape) == (B, 1, X, X)
    assert PLAIN.fold_scores(None, like, like) is None


def test_sizes_that_are_tensors_are_multiplied():
    sizes = [tensor(np.array(size)) for size in (2, 3, 5)]
    same(_product(tuple(sizes)), 30)
    same(_product((sizes[0], 3, 5)), 30)
    same(_product((2, 3, sizes[2])), 30)
    assert _product((2, 3, 5)) == 30
    assert _product((7,)) == 7
