"""Sinusoids and rows of tables, by hand."""

import math

import numpy as np

from kerasattention.positions.distance_tables import deberta_entries, sinusoids


def test_sinusoids_are_those_of_the_distance_from_the_key_to_the_query():
    found = sinusoids(1, 3)  # an odd width leaves the last cosine out
    slow = math.sin(10000 ** (-2 / 3))
    expected = [[math.sin(1), math.cos(1), slow], [0, 1, 0], [-math.sin(1), math.cos(1), -slow]]
    np.testing.assert_allclose(found, expected, atol=1e-15)


def test_each_distance_has_a_row_and_the_farthest_before_shares_one():
    assert deberta_entries(2, None) == (3, 3, 2, 1, 0)


def test_far_distances_share_rows_by_their_logarithm():
    found = deberta_entries(10, 16)
    # Up to 4 each has its own; 5 to 9 are in 4 + ceil(3 log(d / 4) / log(9 / 4)).
    upper = [4 + math.ceil(3 * math.log(d / 4) / math.log(9 / 4)) for d in (5, 6, 7, 8)] + [7, 8]
    lower = [-row for row in upper]
    rows = [*reversed(upper), 4, 3, 2, 1, 0, -1, -2, -3, -4, *lower]
    assert found == tuple(min(max(row + 8, 0), 15) for row in rows)
