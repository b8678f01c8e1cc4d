"""Slopes of linear biases."""

import numpy as np
import pytest

import position_reference as formulas
from kerasattention import AlibiPosition
from kerasattention.positions.alibi import alibi_slopes


def test_slopes_by_hand():
    assert alibi_slopes(1) == (2**-8,)
    assert alibi_slopes(8) == tuple(2.0**-n for n in range(1, 9))
    filled = alibi_slopes(12)
    assert filled[:8] == alibi_slopes(8)
    np.testing.assert_allclose(filled[8:], 2.0 ** -np.array([0.5, 1.5, 2.5, 3.5]))


@pytest.mark.parametrize("heads", range(1, 24))
def test_slopes_of_any_number_of_heads(heads):
    np.testing.assert_allclose(alibi_slopes(heads), formulas.slopes(heads), rtol=1e-12)


def test_slopes_given_are_those_of_the_heads():
    position = AlibiPosition([0.5, 0.125, 3])
    position.prepare(3, 7)
    assert position.block_bias(3, True).slopes == (0.5, 0.125, 3)
    assert AlibiPosition(**position.get_config()).slopes == position.slopes
    assert position.keep_heads([0, 2], 3).slopes == (0.5, 3)
    assert AlibiPosition().keep_heads([1, 3], 4).slopes == (2.0**-4, 2.0**-8)
    assert AlibiPosition().get_config() == {}
    with pytest.raises(ValueError, match="each of 4 query heads"):
        position.prepare(4, 7)
    for wrong in ([], [0.5, 0.0], [0.5, float("inf")], ["a"], [True]):
        with pytest.raises(ValueError, match=r"`slopes` must be `None` or positive.*slopes="):
            AlibiPosition(wrong)
