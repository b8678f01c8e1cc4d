"""Layers derived with a `_compute_attention()` as Keras's layers have it."""

import numpy as np
import pytest

from backends import tensor, to_numpy
from kerasattention import AlibiPosition, GroupQueryAttention

B, T, D = 2, 5, 7
X = tensor(np.random.default_rng(3).normal(size=(B, T, D)))
PADDING = np.arange(T) < np.array([[3], [5]])


class Recording(GroupQueryAttention):
    """Keeps the mask, and attends as the class it is derived from."""

    def _compute_attention(self, query, key, value, attention_mask=None, training=None):
        self.received = attention_mask
        return super()._compute_attention(query, key, value, attention_mask)


def test_an_override_gets_all_masks_as_one():
    layer = Recording(4, 6, 2, sliding_window=2)
    layer(X, query_mask=tensor(PADDING), use_causal_mask=True)
    query, key = np.arange(T)[:, None], np.arange(T)[None]
    expected = (
        (key <= query) & (query - key < 2) & PADDING[:, None, None] & PADDING[:, None, :, None]
    )
    received = np.broadcast_to(to_numpy(layer.received), (B, 1, T, T))
    np.testing.assert_array_equal(received, expected)


def test_an_override_that_only_passes_on_changes_nothing():
    layer, plain = Recording(4, 6, 2), GroupQueryAttention(4, 6, 2)
    layer.build((B, T, D))
    plain.build((B, T, D))
    plain.set_weights(layer.get_weights())
    found = layer(X, use_causal_mask=True)
    np.testing.assert_allclose(to_numpy(found), to_numpy(plain(X, use_causal_mask=True)), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"logit_soft_cap": 2.0}, "logit_soft_cap"),
        ({"attention_sink": True}, "attention_sink"),
        ({"position": AlibiPosition()}, "`position` with biases"),
    ],
    ids=["cap", "sink", "alibi"],
)
def test_options_that_an_override_has_no_argument_for_are_refused(options, name):
    layer = Recording(4, 6, 2, **options)
    with pytest.raises(ValueError, match=f"`Recording` overrides.*{name}.*would be lost"):
        layer(X)
