"""Contexts of attention layers: which is active, and when it is asked for what."""

import contextlib

import numpy as np
import pytest

from backends import tensor, to_numpy
from kerasattention import GroupQueryAttention
from kerasattention.attend.mask import AttentionMask
from kerasattention.attend.tensors import Span
from kerasattention.layers.context import (
    AttentionContext,
    attention_context,
    current_context,
    is_observed,
    lazy_weights,
)

B, T, D, N, H = 2, 5, 7, 6, 4
X = np.random.default_rng(1).normal(size=(B, T, D))


class Recording(AttentionContext):
    """Notes its calls, reads the weights of two rows and doubles the heads' results."""

    def __init__(self):
        self.calls = []

    def project(self, layer, self_attention, compute):
        self.calls.append(("project", self_attention))
        return compute()

    def set_positions(self, layer, mask, self_attention):
        self.calls.append("set_positions")
        return mask

    def update_cache(self, layer, key, value, mask, self_attention):
        self.calls.append(("update_cache", tuple(key.shape)))
        return key, value, mask

    def observe(self, layer, weights):
        self.calls.append("observe")
        self.weights = weights(Span(1, 2))

    def scale_heads(self, layer, heads):
        self.calls.append("scale_heads")
        return heads * 2.0


def test_a_layer_calls_the_active_context_in_order():
    layer = GroupQueryAttention(H, N, 2, use_bias=False)
    x = tensor(X)
    output, scores = layer(x, return_attention_scores=True)
    with attention_context(Recording()) as context:
        found = layer(x)
        assert [x if isinstance(x, str) else x[0] for x in context.calls] == [
            "project",
            "set_positions",
            "update_cache",
            "observe",
            "scale_heads",
        ]
        assert context.calls[0] == ("project", True)
        assert context.calls[2] == ("update_cache", (B, T, 2, H))
        context.calls.clear()
        layer(x, tensor(X[:, :3]))
        assert context.calls[0] == ("project", False)
        assert context.calls[2] == ("update_cache", (B, 3, 2, H))
        layer(x)
    np.testing.assert_allclose(to_numpy(found), 2 * to_numpy(output), atol=1e-5)
    np.testing.assert_allclose(to_numpy(context.weights), to_numpy(scores)[:, :, 1:3], atol=1e-6)
    np.testing.assert_allclose(to_numpy(layer(x)), to_numpy(output), atol=1e-6)


def test_contexts_nest_and_end_with_an_error():
    assert not is_observed()
    with attention_context(AttentionContext()) as outer:
        with contextlib.suppress(RuntimeError), attention_context(AttentionContext()) as inner:
            assert current_context() is inner
            raise RuntimeError
        assert current_context() is outer
        assert is_observed()
    assert not is_observed()


def test_weights_of_rows_that_are_not_there_are_refused():
    x = tensor(X[:, :, None])
    weights = lazy_weights("a", x, x, x, AttentionMask(causal=True), {"scale": 1.0})
    logits = np.where(np.tri(T) > 0, X @ X.swapaxes(1, 2), -np.inf)
    expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(to_numpy(weights())[:, 0], expected, atol=1e-5)
    np.testing.assert_allclose(to_numpy(weights(Span(2, 3)))[:, 0], expected[:, 2:], atol=1e-5)
    for rows in (Span(3, 3), Span(-1, 2)):
        with pytest.raises(ValueError, match="'a'"):
            weights(rows)
