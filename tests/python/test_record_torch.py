"""Steps recorded on torch: that they are, and give what the model does."""

import numpy as np
import pytest
from keras import layers, ops

import kerasattention as ka
from backends import BACKEND
from decoding_models import attending, draw_tokens, model_of, next_logits, numpy

pytestmark = pytest.mark.skipif(BACKEND != "torch", reason="steps are recorded on torch")

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
def test_steps_are_recorded(name):
    model, tokens = model_of(attending(**OPTIONS[name])), draw_tokens()
    decoder, made = steps(model, tokens)
    assert decoder._runner._recorded is not None
    np.testing.assert_allclose(made, expected(model, tokens), atol=2e-5)


def products(decoder):
    """Names of the products that a recording computes."""
    nodes = decoder._runner._recorded._module.graph.nodes
    names = [str(node.target) for node in nodes]
    return [name for name in ("aten._int_mm.default", "aten.mm.default") if name in names]


def test_int8_is_multiplied_as_int8():
    model, tokens = model_of(attending(position=ka.RotaryPosition())), draw_tokens()
    model.quantize("int8")
    decoder, made = steps(model, tokens)
    assert products(decoder) == ["aten._int_mm.default"]
    # A rounding of an activation may fall to the other side.
    np.testing.assert_allclose(made, expected(model, tokens), atol=0.05)
    np.testing.assert_allclose(np.median(np.abs(made - expected(model, tokens))), 0, atol=1e-5)


def test_int8_prompts_are_multiplied_as_int8_and_give_the_same(monkeypatch):
    import contextlib

    from kerasattention.decoding.backends import int8_prompts_torch, torch

    model, tokens = model_of(attending(position=ka.RotaryPosition())), draw_tokens()
    model.quantize("int8")
    depths = []
    product = int8_prompts_torch._product
    monkeypatch.setattr(
        int8_prompts_torch,
        "_product",
        lambda left, right, axes: depths.append(axes) or product(left, right, axes),
    )
    decoder = ka.IncrementalDecoder(model, tokens.shape[0], tokens.shape[1])
    made = [numpy(decoder.prefill(tokens[:, :3])), numpy(decoder.step(tokens[:, 3:5]))]
    assert depths.count(2) == 2
    assert depths.count(1) > 6
    monkeypatch.setattr(torch, "int8_products", lambda model: contextlib.nullcontext())
    decoder.reset()
    plain = [numpy(decoder.prefill(tokens[:, :3])), numpy(decoder.step(tokens[:, 3:5]))]
    np.testing.assert_array_equal(made, plain)


def test_a_changed_int8_weight_is_seen():
    model, tokens = model_of(attending(position=ka.RotaryPosition())), draw_tokens()
    model.quantize("int8")
    decoder, _ = steps(model, tokens)
    before = decoder._runner._recorded
    dense = next(x for x in model.layers if isinstance(x, layers.Dense))
    dense._kernel.assign(-dense._kernel)
    decoder.reset()
    decoder.prefill(tokens[:, :2])
    made = np.stack([numpy(decoder.step(tokens[:, i])) for i in range(2, tokens.shape[1])])
    assert decoder._runner._recorded is not before
    np.testing.assert_allclose(np.median(np.abs(made - expected(model, tokens))), 0, atol=1e-5)


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
def test_what_depends_on_values_is_not_recorded(kind):
    model, tokens = model_of(lambda x: attending()(kind()(x))), draw_tokens(rows=1)
    embedding = next(x for x in model.layers if isinstance(x, layers.Embedding))
    table = np.random.default_rng(5).uniform(size=embedding.embeddings.shape)
    table[0] *= 0.4  # token 0 alone stays below one half
    table[1:, 0] = 0.8
    embedding.embeddings.assign(table)
    tokens[tokens == 0] = 1
    decoder, made = steps(model, tokens)
    assert decoder._runner.runner._recorded is None  # the layer is tried, its runner compared
    np.testing.assert_allclose(made, expected(model, tokens), atol=2e-5)
