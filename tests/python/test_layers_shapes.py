"""Which shapes fit each other, known and unknown, and what the errors say."""

import dataclasses

import pytest

from kerasattention.layers.axes import AxisFold
from kerasattention.layers.shapes import (
    CallShapes,
    check_call,
    check_inputs,
    scores_shape,
    shape_of,
)

B, T, S, N = 2, 3, 5, 7
QUERY, KEY = (B, T, 11), (B, S, 13)
PLAIN, MANY = AxisFold((1,), 3), AxisFold((2,), 4)
CALL = CallShapes(QUERY, KEY, KEY)
GRID = CallShapes((B, 17, T, 11), (B, 17, S, 13), (B, 17, S, 13))


@pytest.mark.parametrize(
    ("query", "value", "key", "message"),
    [
        ((T, 11), KEY, KEY, "at least 3 axes.*query \\(3, 11\\)"),
        (QUERY, KEY, (B, 1, S, 13), "numbers of axes.*must be equal"),
        (QUERY, (B, S, None), KEY, "last axis of `value` must be known"),
        (QUERY, (B, 4, 13), KEY, "`value` and `key` but the last.*axis 1"),
        ((4, T, 11), KEY, KEY, "batch axes.*must be equal\\. .*axis 0"),
        (QUERY, (4, S, 13), (None, S, 13), "batch axes.*axis 0"),
    ],
)
def test_inputs_that_do_not_belong_together(query, value, key, message):
    with pytest.raises(ValueError, match=message):
        check_inputs(query, value, key, None)


def test_inputs_that_fit_and_unknown_sizes():
    check_inputs(QUERY, KEY, KEY, None)
    check_inputs((None, None, 11), KEY, (None, S, 13), None)
    check_inputs(GRID.query, GRID.value, GRID.key, (2,))
    check_inputs((B, 4, T, 11), GRID.value, GRID.key, (1, 2))
    with pytest.raises(ValueError, match=r"so all axes that are not attended.*axis 1"):
        check_inputs((B, 4, T, 11), GRID.value, GRID.key, (2,))
    check_inputs(QUERY, KEY, KEY, None, (11, 13, 13))
    with pytest.raises(ValueError, match=r"built for .*\(11, 13, 4\)"):
        check_inputs(QUERY, KEY, KEY, None, (11, 13, 4))


FITS = [
    ("attention_mask", (T, S)),
    ("attention_mask", (B, T, S)),
    ("attention_mask", (B, 1, T, S)),
    ("attention_bias", (1, N, 1, S)),
    ("attention_mask", (None, N, None, S)),
    ("query_mask", (B, T)),
    ("query_mask", (1, T)),
    ("key_mask", (None, S)),
    ("segment_ids", (1, T)),
    ("positions", (B, None)),
]
DOES_NOT_FIT = [
    ("attention_mask", (S, T), r"\(B, N, T, S\) = \(2, 7, 3, 5\).*shape \(5, 3\)"),
    ("attention_bias", (N, T, S), "`attention_bias` must broadcast"),  # not (B, T, S)
    ("attention_mask", (S,), "must broadcast"),
    ("attention_mask", (1, B, N, T, S), "must broadcast"),
    ("query_mask", (B, S), r"axes of `query` but its last: \(2, 3\)"),
    ("value_mask", (B, 1), "axes of `value`"),
    ("key_mask", (B, S, 1), "axes of `key`"),
    ("segment_ids", (T,), r"shape \(B, T\) = \(2, 3\)"),
    ("positions", (B, S), "`positions` must have shape"),
    ("positions", (3, T), "`positions` must have shape"),
]


@pytest.mark.parametrize(("name", "shape"), FITS)
def test_arguments_that_fit(name, shape):
    check_call(dataclasses.replace(CALL, **{name: shape}), PLAIN, N)


@pytest.mark.parametrize(("name", "shape", "message"), DOES_NOT_FIT)
def test_arguments_that_do_not_fit(name, shape, message):
    with pytest.raises(ValueError, match=message):
        check_call(dataclasses.replace(CALL, **{name: shape}), PLAIN, N)


@pytest.mark.parametrize(
    ("name", "fits", "wrong", "message"),
    [
        ("attention_mask", (B, 17, 1, T, S), (B, 4, 1, S), "the last 2 of these"),
        ("query_mask", (B, T), (B, 17, S), r"\(2, 3\) or \(2, 17, 3\)"),
        ("key_mask", (B, 17, S), (B, T), r"\(2, 5\) or \(2, 17, 5\)"),
        ("positions", (B, T), (B, 17 * T), r"\(B, T\) = \(2, 3\)"),
    ],
)
def test_arguments_of_inputs_with_more_axes(name, fits, wrong, message):
    check_call(dataclasses.replace(GRID, **{name: fits}), MANY, N)
    with pytest.raises(ValueError, match=message):
        check_call(dataclasses.replace(GRID, **{name: wrong}), MANY, N)


def test_scores_have_the_axes_of_queries_and_keys():
    assert scores_shape(QUERY, KEY, PLAIN, N) == (B, N, T, S)
    assert scores_shape(GRID.query, GRID.key, MANY, N) == (B, 17, N, T, S)
    fold = AxisFold((1, 2), 4)
    assert scores_shape((B, 3, None, 1), (B, 5, 7, 1), fold, N) == (B, N, 3, None, 5, 7)


def test_what_has_no_shape_is_refused_by_name():
    assert shape_of("query", None) is None
    with pytest.raises(ValueError, match=r"`query` must be a tensor or an array.*'x'"):
        shape_of("query", "x")
