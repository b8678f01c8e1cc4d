"""The checks that the package shares: one wording for one rule."""

import pathlib
import re

import numpy as np
import pytest

import kerasattention
from kerasattention import checks

MODULE = pathlib.Path(kerasattention.__file__).parent


@pytest.mark.parametrize("value", [0, -3, 2.0, True, "2", None, np.int64(2)], ids=repr)
def test_no_positive_integer(value):
    message = f"`size` must be a positive integer. Received: size={value!r}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        checks.positive_integer("size", value)
    if value is not None:
        with pytest.raises(ValueError, match="`size` must be `None` or a positive integer"):
            checks.optional_positive_integer("size", value)


def test_positive_integers_pass():
    assert checks.positive_integer("size", 7) == 7
    assert checks.optional_positive_integer("size", None) is None


@pytest.mark.parametrize(
    ("value", "kept"), [(None, None), (3, (3,)), ([2, 5], (2, 5)), ((1,), (1,))], ids=repr
)
def test_one_integer_or_several_become_a_tuple(value, kept):
    assert checks.optional_integers("axes", value) == kept


@pytest.mark.parametrize("value", [(), "12", True, (1, True), 2.0, (1, None)], ids=repr)
def test_neither_one_integer_nor_several(value):
    message = "`axes` must be `None`, an integer, or a tuple or list of them. Received: axes="
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        checks.optional_integers("axes", value)


def test_a_size_of_an_axis_is_positive():
    assert checks.optional_integers("axes", (-1, 0)) == (-1, 0)
    with pytest.raises(ValueError, match="a positive integer, or a tuple"):
        checks.optional_integers("axes", (3, 0), positive=True)


def test_layers_positions_and_models_leave_the_wording_to_the_checks():
    files = [
        path for name in ("layers", "positions", "models") for path in (MODULE / name).glob("*.py")
    ]
    assert len(files) > 20
    for path in files:
        assert "positive integer" not in path.read_text(encoding="utf-8"), path.name
