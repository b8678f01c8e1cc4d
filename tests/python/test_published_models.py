"""Attention of published models: our layer against the module of `transformers`.

Random weights are copied from theirs into ours; output and gradient of the input agree.
"""

import numpy as np
import pytest

from backends import sampled, tensor, value_and_gradients
from kerasattention import RotaryPosition
from kerasattention.positions.relative import distance_buckets
from layer_twins import pure
from published_models import MODELS, D, H, T, rope

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

B = 2


def seen_by(layer):
    """(T, T), as `transformers` builds it."""
    from transformers import masking_utils

    t, s = np.indices((T, T))
    if layer.sliding_window is not None:
        rule = masking_utils.sliding_window_causal_mask_function(layer.sliding_window)
    elif layer.use_causal_mask:
        rule = masking_utils.causal_mask_function
    else:
        return np.ones((T, T), bool)
    return np.array(rule(0, 0, torch.as_tensor(t), torch.as_tensor(s)))


def copy_weights(layer, weights):
    """By the end of a weight's path; each of theirs must find its place in ours."""
    left = dict(weights)
    for weight in layer.weights:
        if weight.path.endswith("seed_generator_state"):
            continue
        name = next(name for name in weights if weight.path.endswith(name))
        weight.assign(left.pop(name))
    assert not left


# What the others consist of: all run on torch and TensorFlow.
ON_JAX = [
    *("Llama 3.1 8B", "Gemma 2 9B, windows", "Gemma 3 4B, windows", "GPT-J 6B", "MPT 7B"),
    *("T5 base, decoder", "gpt-oss 20B, windows", "DeepSeek-V3"),
]


@pytest.mark.parametrize("name", sampled(MODELS, ON_JAX))
def test_output_and_gradient_are_those_of_transformers(name):
    model = MODELS[name]
    layer = model.small()
    # From 3 on, as after a prompt; a window compares places, so these count by one.
    step = 1 if layer.sliding_window or type(layer.position).__name__ != "RotaryPosition" else 5
    positions = np.arange(T)[None] * step + 3
    features = layer.heads.query * H if model.square else D
    layer.build((B, T, features))
    run, weights, _ = model.twin(layer, seen_by(layer), positions)
    copy_weights(layer, weights)
    rng = np.random.default_rng(9)
    x = rng.normal(size=(B, T, features)).astype("float32")
    upstream = rng.normal(size=(B, T, features)).astype("float32")

    theirs = torch.tensor(x, requires_grad=True)
    expected = run(theirs)
    (expected * torch.as_tensor(upstream)).sum().backward()

    function, values = pure(layer, [x], positions=np.broadcast_to(positions, (B, T)))
    (output,), gradients = value_and_gradients(function, values, tensor(upstream))
    size = np.abs(expected.detach().numpy()).max()
    np.testing.assert_allclose(output, expected.detach().numpy(), rtol=1e-5, atol=1e-5 * size)
    wanted = theirs.grad.numpy()
    np.testing.assert_allclose(gradients["input0"], wanted, atol=2e-5 * np.abs(wanted).max())


ROTARY = {
    name: model.options()["position"]
    for name, model in MODELS.items()
    if isinstance(model.options().get("position"), RotaryPosition)
}


@pytest.mark.parametrize("name", ROTARY)
def test_frequencies_in_published_sizes(name):
    """Also those that a small layer at small positions hardly feels."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    position, layer = ROTARY[name], MODELS[name].full()
    size = getattr(layer, "rotary_dim", layer.heads.size)
    described = rope(position)
    config = transformers.LlamaConfig(head_dim=size, rope_parameters=described)
    if described["rope_type"] == "default":
        rotated = int(size * position.fraction)
        expected = position.theta ** -(torch.arange(0, rotated, 2).double() / rotated)
        factor = 1.0
    else:
        expected, factor = ROPE_INIT_FUNCTIONS[described["rope_type"]](config)
    found = position.frequencies(size)
    np.testing.assert_allclose(found.values, expected.numpy(), rtol=2e-6)
    assert found.attention_factor == pytest.approx(factor)


def test_ntk_scaling_is_the_dynamic_one_at_its_length():
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    described = {"rope_theta": 1e4, "rope_type": "dynamic", "factor": 1.0}
    config = transformers.LlamaConfig(
        head_dim=64, max_position_embeddings=2048, rope_parameters=described
    )
    expected, _ = ROPE_INIT_FUNCTIONS["dynamic"](config, seq_len=4 * 2048)
    found = RotaryPosition(scaling={"type": "ntk", "factor": 4.0}).frequencies(64)
    np.testing.assert_allclose(found.values, expected.numpy(), rtol=2e-6)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(
    ("count", "farthest"), [(32, 128), (32, 20), (8, 100), (64, 256), (6, 17), (10, 1000)]
)
def test_every_distance_is_in_the_bucket_of_t5(count, farthest, bidirectional):
    from transformers.models.t5.modeling_t5 import T5Attention

    distances = torch.arange(-2 * farthest, 2 * farthest + 1)
    expected = T5Attention._relative_position_bucket(distances, bidirectional, count, farthest)
    found = distance_buckets(count, farthest, bidirectional)
    places = np.clip(distances.numpy(), -farthest, farthest) + farthest
    np.testing.assert_array_equal(found[places], expected.numpy())
