"""The same call gives the same bits, as often as it is made; `tests/fuzz/repeats.py` makes more."""

import numpy as np
import pytest

from repeated import REPEATED, repeated

REPEATS = 20


@pytest.mark.parametrize("name", REPEATED)
def test_a_repeated_call_gives_the_same_bits(name):
    """Output and all gradients, with every option at once, compiled as in `fit()`."""
    call = repeated(name)
    first = call()
    for _ in range(REPEATS - 1):
        again = call()
        for which, x in first.items():
            np.testing.assert_array_equal(again[which], x, err_msg=which)


def test_another_input_gives_other_bits():
    """So the comparison above can fail."""
    name = next(iter(REPEATED))
    first, other = repeated(name)(), repeated(name, seed=1)()
    assert any((first[which] != x).any() for which, x in other.items())
