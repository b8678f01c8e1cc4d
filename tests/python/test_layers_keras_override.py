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


class WithWeights(GroupQueryAttention):
    """Gives twice the weights, so that it is seen where they come from."""

    def _compute_attention(
        self, query, key, value, attention_mask=None, training=None, return_attention_scores=False
    ):
        output, weights = super()._compute_attention(
            query, key, value, attention_mask, training, True
        )
        return output, 2.0 * weights if return_attention_scores else None


def test_an_override_gives_the_weights_that_a_call_returns():
    layer, plain = WithWeights(4, 6, 2), GroupQueryAttention(4, 6, 2)
    layer.build((B, T, D))
    plain.build((B, T, D))
    plain.set_weights(layer.get_weights())
    output, weights = layer(X, use_causal_mask=True, return_attention_scores=True)
    expected = plain(X, use_causal_mask=True, return_attention_scores=True)
    np.testing.assert_allclose(to_numpy(output), to_numpy(expected[0]), atol=1e-6)
    np.testing.assert_allclose(to_numpy(weights), 2.0 * to_numpy(expected[1]), atol=1e-6)
    alone = layer(X, use_causal_mask=True)
    np.testing.assert_allclose(to_numpy(alone), to_numpy(expected[0]), atol=1e-6)


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
