"""The kernel of any backend and device, in blocks of queries that are smaller than the problems."""

import numpy as np
import pytest

from backends import tensor, to_numpy
from kerasattention.attend.kernels import blocked
from problems import PROBLEMS, kernel
from test_attend import CLOSE, check

# 5 queries, 5 and 3: the last block is smaller.
BLOCKS = kernel(lambda inputs, block_size: blocked.blocked_attention(inputs, 5))
NAMES = [
    "window, causal, offset",
    "mask with empty rows",
    "cap, bias, causal",
    "sink, empty rows",
    "dropout, window, causal",
]


@pytest.mark.parametrize("name", NAMES)
def test_output_and_gradients(name):
    check(PROBLEMS[name], implementation=BLOCKS)


def test_blocks_whose_queries_see_no_key():
    """With an offset the window of the last queries lies behind all keys: output and lse are 0."""
    given = PROBLEMS["window, causal, offset"]
    far = {**given.mask_fields, "offset": 40}
    inputs = {name: tensor(x) for name, x in given.trainable().items()}
    moved = type(given)(given.query, given.key, given.value, far)
    assert not moved.seen.any()
    np.testing.assert_allclose(
        to_numpy(moved.attend(**inputs, implementation=BLOCKS)), moved.expected[0], **CLOSE
    )
    np.testing.assert_array_equal(moved.expected[0], 0.0)
    check(moved, implementation=BLOCKS)
