"""Integers of tokens that int32 does not hold are refused, as arrays and as tensors."""

import contextlib

import numpy as np
import pytest
from keras import ops

from backends import BACKEND
from kerasattention import GroupQueryAttention, scaled_dot_product_attention
from kerasattention.layers.inputs import NUMBERS_OF_TOKENS


def wide_integers():
    """JAX has integers of 64 bits only where they are asked for."""
    if BACKEND != "jax":
        return contextlib.nullcontext()
    import jax

    return jax.enable_x64(True)


@pytest.mark.parametrize("made", [np.asarray, ops.convert_to_tensor], ids=["array", "tensor"])
@pytest.mark.parametrize("name", NUMBERS_OF_TOKENS)
@pytest.mark.parametrize(("number", "dtype"), [(2**32 + 1, "int64"), (2**31, "uint32")])
def test_integers_that_int32_would_wrap_are_refused(name, number, dtype, made):
    layer, x = GroupQueryAttention(4, 2, 2), np.ones((2, 5, 3), "float32")
    given = np.array([[1, 1, 1, number, number]] * 2, dtype)
    with wide_integers():
        with pytest.raises(ValueError, match=f"`{name}` must be integers from.*{number}"):
            layer(x, **{name: made(given)})
        least = np.minimum(given, 2**31 - 1).astype(dtype)
        assert layer(x, **{name: made(least)}).shape == (2, 5, 3)


@pytest.mark.parametrize("which", [0, 1])
def test_segments_of_the_function_that_int32_would_wrap_are_refused(which):
    x = np.ones((2, 5, 1, 4), "float32")
    segments = [np.ones((2, 5), "int64"), np.ones((2, 5), "int64")]
    segments[which][1, 3] = -(2**31) - 1
    with pytest.raises(ValueError, match=r"`segment_ids` must be integers from.*-2147483649"):
        scaled_dot_product_attention(x, x, x, segment_ids=tuple(segments))
