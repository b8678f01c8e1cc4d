"""A graph of TensorFlow refuses integers of tokens that int32 does not hold."""

import numpy as np
import pytest
import tensorflow as tf

from kerasattention import GroupQueryAttention


def test_a_graph_refuses_integers_that_int32_would_wrap():
    layer, x = GroupQueryAttention(4, 2, 2), np.ones((2, 5, 3), "float32")
    call = tf.function(lambda ids: layer(x, segment_ids=ids))
    ids = np.ones((2, 5), "int64")
    assert call(tf.constant(ids)).shape == (2, 5, 3)
    ids[0, 0] = 2**32 + 1
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"`segment_ids` must be integers"):
        call(tf.constant(ids))
