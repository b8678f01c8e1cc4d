"""Steps traced on torch: that they are, and give what the model does."""

import numpy as np
import pytest
from keras import layers, ops

import kerasattention as ka
from backends import BACKEND
from decoding_models import attending, draw_tokens, model_of, next_logits, numpy

pytestmark = pytest.mark.skipif(BACKEND != "torch", reason="steps are traced on torch")

OPTIONS = {
    "plain": {},
    "rotary": {"position": ka.RotaryPosition(), "qk_norm": True},
    "alibi": {"position": ka.AlibiPosition()},
    "relative": {"position": ka.RelativePosition(8, 13)},
    "rolling": {"sliding_window": 3, "attention_sink": True, "use_gate": True},
    "soft_cap": {"logit_soft_cap": 2.0},
}


def steps(model, tokens, first=2):
    """The decoder behind its last step, and the logits of each step (steps, B, V)."""
    decoder = ka.IncrementalDecoder(model, tokens.shape[0], tokens.shape[1])
    decoder.prefill(tokens[:, :first])
    made = [decoder.step(tokens[:, index]) for index in range(first, tokens.shape[1])]
    return decoder, np.stack([numpy(x) for x in made])


def expected(model, tokens, first=2):
    length = tokens.shape[1]
    return np.stack([next_logits(model, tokens[:, : i + 1], length) for i in range(first, length)])


@pytest.mark.parametrize("name", OPTIONS)
def test_steps_are_traced(name):
    model, tokens = model_of(attending(**OPTIONS[name])), draw_tokens()
    decoder, made = steps(model, tokens)
    assert decoder._runner._trace is not None
    np.testing.assert_allclose(made, expected(model, tokens), atol=2e-5)


class Guarded(layers.Layer):
    """Looks into its input."""

    def call(self, x):
        if float(ops.max(ops.abs(x.detach()))) > 1e6:
            raise ValueError("Too large.")
        return x


class Outside(layers.Layer):
    """Computes a factor of each token out of torch's sight."""

    def call(self, x):
        large = x.detach().numpy().max(axis=-1, keepdims=True) > 0.5
        return x * ops.convert_to_tensor(1.0 + large.astype("float32"))


@pytest.mark.parametrize("kind", [Guarded, Outside])
def test_what_depends_on_values_is_not_traced(kind):
    model, tokens = model_of(lambda x: attending()(kind()(x))), draw_tokens(rows=1)
    embedding = next(x for x in model.layers if isinstance(x, layers.Embedding))
    table = np.random.default_rng(5).uniform(size=embedding.embeddings.shape)
    table[0] *= 0.4  # token 0 alone stays below one half
    table[1:, 0] = 0.8
    embedding.embeddings.assign(table)
    tokens[tokens == 0] = 1
    decoder, made = steps(model, tokens)
    assert decoder._runner.runner._trace is None  # the layer is tried, its runner compared
    np.testing.assert_allclose(made, expected(model, tokens), atol=2e-5)
