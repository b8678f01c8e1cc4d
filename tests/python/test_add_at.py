"""A part is added to a span of an axis, whose start may be a tensor."""

import numpy as np
import pytest

from backends import compiled, tensor, to_numpy
from kerasattention.attend.add_at import add_at
from kerasattention.attend.tensors import Span


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_part_is_added_to_a_span_of_an_axis(axis):
    x = np.random.default_rng(3).normal(size=(2, 7, 5)).astype("float32")
    span = Span(1, x.shape[axis] - 1)
    part = np.take(x, range(span.size), axis) * 2
    expected = x.copy()
    expected[(slice(None),) * axis + (slice(1, None),)] += part
    found = to_numpy(add_at(tensor(x.copy()), {axis: span}, tensor(part)))
    np.testing.assert_array_equal(found, expected)

    def from_tensor(start):
        return add_at(tensor(x.copy()), {axis: Span(start, span.size)}, tensor(part))

    found = compiled(from_tensor)(tensor(np.array(1, "int32")))
    np.testing.assert_array_equal(to_numpy(found), expected)


def test_a_part_is_added_to_spans_of_two_axes():
    x = np.random.default_rng(4).normal(size=(2, 3, 7, 5)).astype("float32")
    part = np.random.default_rng(5).normal(size=(2, 2, 4, 5)).astype("float32")
    expected = x.copy()
    expected[:, 1:3, 2:6] += part

    def added(x, heads, start):
        return add_at(x, {1: Span(heads, 2), 2: Span(start, 4)}, tensor(part))

    np.testing.assert_array_equal(to_numpy(added(tensor(x.copy()), 1, 2)), expected)
    starts = [tensor(np.array(start, "int32")) for start in (1, 2)]
    found = compiled(added)(tensor(x.copy()), *starts)
    np.testing.assert_array_equal(to_numpy(found), expected)
