"""Short sequences packed into rows: by hand, in random numbers, and what is refused."""

import numpy as np
import pytest

from kerasattention import pack_sequences


def test_rows_of_packed_sequences_by_hand():
    packed = pack_sequences([[11, 12, 13], [21, 22, 23, 24], [31, 32], [41], [51] * 5], 5)
    tokens, segments, positions = packed
    np.testing.assert_array_equal(tokens, [[11, 12, 13, 31, 32], [21, 22, 23, 24, 41], [51] * 5])
    np.testing.assert_array_equal(segments, [[1, 1, 1, 3, 3], [2, 2, 2, 2, 4], [5] * 5])
    np.testing.assert_array_equal(positions, [[0, 1, 2, 0, 1], [0, 1, 2, 3, 0], range(5)])
    assert tokens.dtype == "int32"


def test_every_packed_sequence_comes_back():
    rng = np.random.default_rng(5)
    sequences = [rng.integers(0, 99, rng.integers(1, 14)) for _ in range(60)]
    packed = pack_sequences(sequences, 13)
    for index, sequence in enumerate(sequences):
        where = packed.segment_ids == index + 1
        np.testing.assert_array_equal(packed.tokens[where], sequence)
        np.testing.assert_array_equal(packed.positions[where], np.arange(len(sequence)))
        assert len(set(np.nonzero(where)[0])) == 1
    padding = packed.segment_ids == 0
    assert not packed.tokens[padding].any()
    assert not packed.positions[padding].any()
    assert padding.sum() == packed.tokens.size - sum(map(len, sequences))
    used = (~padding).sum(axis=1)
    assert (used[1:] + used[:-1] > 13).all()


@pytest.mark.parametrize(
    ("sequences", "length", "message"),
    [
        ([[1, 2], []], 4, r"sequence 2 of shape \(0,\)"),
        ([[1.5]], 4, "at least one integer.*sequence 1.*float64"),
        ([[1], [1, 2, 3]], 2, "`length` 2.*sequence 2 with 3 tokens"),
        ([], 2, "at least one"),
        ([[1]], 0, "`length` must be a positive integer.*0"),
        ([[1]], 2.0, "`length` must be a positive integer.*2.0"),
    ],
)
def test_sequences_that_cannot_be_packed(sequences, length, message):
    with pytest.raises(ValueError, match=message):
        pack_sequences(sequences, length)
