"""Attention of published models: our layer against the module of `transformers`.

Random weights are copied from theirs into ours; output and gradient of the input agree.
"""

import numpy as np
import pytest

import kerasattention
from backends import sampled, tensor, to_numpy, value_and_gradients
from kerasattention import GroupQueryAttention, RotaryPosition
from kerasattention.positions.buckets import distance_buckets
from layer_twins import pure
from published_models import (
    MODELS,
    WINDOW,
    D,
    H,
    K,
    N,
    T,
    additive,
    as_numpy,
    joined,
    randomize,
    rope,
    split,
)

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

B = 2


def seen_by(layer, length):
    """(T, T), as `transformers` builds it."""
    from transformers import masking_utils

    t, s = np.indices((length, length))
    if layer.sliding_window is not None and not layer.use_causal_mask:
        rule = masking_utils.sliding_window_bidirectional_mask_function(layer.sliding_window - 1)
    elif layer.sliding_window is not None:
        rule = masking_utils.sliding_window_causal_mask_function(layer.sliding_window)
    elif layer.use_causal_mask:
        rule = masking_utils.causal_mask_function
    else:
        return np.ones((length, length), bool)
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
    *("Qwen2-VL 7B", "Swin tiny, stage 1"),
]


@pytest.mark.parametrize("name", sampled(MODELS, ON_JAX))
def test_output_and_gradient_are_those_of_transformers(name):
    model = MODELS[name]
    layer = model.small()
    # From 3 on, as after a prompt; a window compares places, so these count by one.
    step = 1 if layer.sliding_window or type(layer.position).__name__ != "RotaryPosition" else 5
    length = model.length
    positions = np.arange(length)[None] * step + 3
    if model.places is not None:
        positions = model.places()
    features = layer.heads.query * H if model.square else D
    layer.build((B, length, features))
    run, weights, _ = model.twin(layer, seen_by(layer, length), positions)
    copy_weights(layer, weights)
    rng = np.random.default_rng(9)
    x = rng.normal(size=(B, length, features)).astype("float32")
    upstream = rng.normal(size=(B, length, features)).astype("float32")

    theirs = torch.tensor(x, requires_grad=True)
    expected = run(theirs)
    (expected * torch.as_tensor(upstream)).sum().backward()

    function, values = pure(layer, [x], positions=np.repeat(positions, B, axis=0))
    (output,), gradients = value_and_gradients(function, values, tensor(upstream))
    size = np.abs(expected.detach().numpy()).max()
    np.testing.assert_allclose(output, expected.detach().numpy(), rtol=1e-5, atol=1e-5 * size)
    wanted = theirs.grad.numpy()
    np.testing.assert_allclose(gradients["input0"], wanted, atol=2e-5 * np.abs(wanted).max())


# Of two samples, 1 for a token of an image; no image is longer than the window.
IMAGES = np.array(
    [[0, 1, 1, 1, 1, 0, 0, 1, 1, 0, 1, 1, 0], [1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 0, 0, 0]]
)


@pytest.mark.parametrize("name", ["Gemma 3 4B, windows", "Gemma 3 4B, global"])
def test_images_of_gemma_3_are_spans(name):
    """With the mask that `transformers` builds of `token_type_ids` and padding."""
    from transformers.models.gemma3 import modeling_gemma3 as theirs

    if not hasattr(theirs, "create_masks_for_vision_model"):
        pytest.skip("this version of transformers builds its masks elsewhere")
    layer = MODELS[name].small()
    layer.build((B, T, D))
    config = transformers.Gemma3TextConfig(
        hidden_size=D, num_attention_heads=1, num_key_value_heads=1, sliding_window=WINDOW
    )
    config._attn_implementation = "eager"
    real = np.arange(T) < np.array([[T], [T - 2]])
    ids = theirs.get_block_sequence_ids_for_mask(torch.as_tensor(IMAGES))
    masks = theirs.create_masks_for_vision_model(
        config, torch.zeros(B, T, D), torch.as_tensor(real), None, None, ids
    )
    kind = "sliding_attention" if layer.sliding_window else "full_attention"
    x = np.random.default_rng(9).normal(size=(B, T, D)).astype("float32")
    positions = np.arange(T)[None]
    for row in range(B):
        seen = masks[kind][row, 0].numpy() == 0
        run, weights, _ = MODELS[name].twin(layer, seen, positions)
        copy_weights(layer, weights)
        expected = run(torch.as_tensor(x[row : row + 1])).detach().numpy()
        found = layer(
            tensor(x[row : row + 1]),
            bidirectional=ids.numpy()[row : row + 1] + 1,
            value_mask=real[row : row + 1],
        )
        size = np.abs(expected).max()
        np.testing.assert_allclose(to_numpy(found), expected, rtol=1e-5, atol=1e-5 * size)


@pytest.mark.parametrize("kind", ["sliding_attention", "full_attention"])
def test_shared_keys_of_gemma_3n(kind):
    """The last layers use the keys and values of the last layer of their kind before them."""
    from transformers.models.gemma3n import modeling_gemma3n as theirs

    N, K, window, theta = 6, 2, 4, 500.0
    config = transformers.Gemma3nTextConfig(
        hidden_size=D,
        head_dim=H,
        num_attention_heads=N,
        num_key_value_heads=K,
        num_hidden_layers=4,
        num_kv_shared_layers=2,
        layer_types=["sliding_attention", "full_attention"] * 2,
        sliding_window=window,
    )
    config._attn_implementation = "eager"
    first = config.layer_types.index(kind)
    torch.manual_seed(3)
    modules = [theirs.Gemma3nTextAttention(config, index).eval() for index in (first, first + 2)]
    assert [x.is_kv_shared_layer for x in modules] == [False, True]
    t, s = np.indices((T, T))
    seen = (s <= t) & ((t - s < window) | (kind == "full_attention"))
    options = {
        "position": RotaryPosition(theta),
        "qk_norm": True,
        "use_bias": False,
        "scale": 1.0,
        "use_causal_mask": True,
        "sliding_window": window if kind == "sliding_attention" else None,
    }
    source = GroupQueryAttention(H, N, K, value_norm=True, **options)
    user = GroupQueryAttention(H, N, K, key_value_of=source, **options)
    x, y = (np.random.default_rng(i).normal(size=(B, T, D)).astype("float32") for i in (1, 2))
    found = [source(tensor(x))]
    found.append(user(tensor(y), key_value_from=found[0]))
    for layer, module in zip((source, user), modules, strict=True):
        for norm in (module.q_norm, getattr(module, "k_norm", None)):
            if norm is not None:
                norm.weight.data.uniform_(0.5, 1.5)
        copy_weights(layer, gemma_weights(module, N, K))
    found = [source(tensor(x))]
    found.append(user(tensor(y), key_value_from=found[0]))
    angles = np.arange(T)[:, None] * theta ** (-np.arange(0, H, 2) / H)
    angles = torch.as_tensor(np.concatenate([angles, angles], axis=-1)[None].astype("float32"))
    mask = torch.as_tensor(np.where(seen, 0.0, -np.inf)[None, None].astype("float32"))
    shared = {}
    for module, given, ours in zip(modules, (x, y), found, strict=True):
        expected = module(
            torch.as_tensor(given), (angles.cos(), angles.sin()), mask, shared_kv_states=shared
        )[0]
        expected = expected.detach().numpy()
        size = np.abs(expected).max()
        np.testing.assert_allclose(to_numpy(ours), expected, rtol=1e-5, atol=1e-5 * size)


def test_keys_as_values_of_gemma_4():
    from transformers.models.gemma4 import modeling_gemma4 as theirs

    N, K, position = 6, 2, RotaryPosition(500.0)
    config = transformers.Gemma4TextConfig(
        hidden_size=D,
        global_head_dim=H,
        num_attention_heads=N,
        num_global_key_value_heads=K,
        num_hidden_layers=1,
        layer_types=["full_attention"],
        attention_k_eq_v=True,
        rope_parameters={"full_attention": rope(position)},
    )
    config._attn_implementation = "eager"
    torch.manual_seed(3)
    module = theirs.Gemma4TextAttention(config, 0).eval()
    for norm in (module.q_norm, module.k_norm):
        norm.weight.data.uniform_(0.5, 1.5)
    layer = GroupQueryAttention(
        *(H, N, K),
        position=position,
        qk_norm=True,
        value_norm=True,
        use_key_as_value=True,
        scale=1.0,
        use_bias=False,
        use_causal_mask=True,
    )
    x = np.random.default_rng(1).normal(size=(B, T, D)).astype("float32")
    layer.build((B, T, D))
    copy_weights(layer, gemma_weights(module, N, K))
    found = to_numpy(layer(tensor(x)))
    angles = theirs.Gemma4TextRotaryEmbedding(config)(
        torch.as_tensor(x), torch.arange(T)[None], "full_attention"
    )
    mask = torch.full((T, T), -np.inf).triu(1)[None, None]
    expected = module(torch.as_tensor(x), angles, mask, shared_kv_states={})[0].detach().numpy()
    size = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * size)


def gemma_weights(module, N, K):
    def kernel(linear, heads):
        return linear.weight.detach().numpy().T.reshape(D, heads, H)

    weights = {
        "query/kernel": kernel(module.q_proj, N),
        "query_norm/scale": module.q_norm.weight.detach().numpy(),
        "attention_output/kernel": module.o_proj.weight.detach().numpy().T.reshape(N, H, D),
    }
    if module.is_kv_shared_layer:
        return weights
    weights["key/kernel"] = kernel(module.k_proj, K)
    weights["key_norm/scale"] = module.k_norm.weight.detach().numpy()
    if module.v_proj is not None:
        weights["value/kernel"] = kernel(module.v_proj, K)
    return weights


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


# Scalings -----------------------------------------------------------------------------------------

LONGROPE = {
    "type": "longrope",
    "short_factor": [1.0, 1.25, 1.5, 2.0],
    "long_factor": [1.0, 2.0, 6.0, 9.5],
    "original_max_position_embeddings": 24,
    "max_position_embeddings": 96,
}


@pytest.mark.parametrize("start", [0, 11, 12, 70])
def test_phi3_with_longrope(start):
    """Up to the original length of 24 positions, and beyond."""
    from transformers.models.phi3 import modeling_phi3 as theirs
    from transformers.models.phi3.configuration_phi3 import Phi3Config

    described = {name: x for name, x in LONGROPE.items() if name != "type"}
    longest = described.pop("max_position_embeddings")
    config = Phi3Config(
        hidden_size=N * H,
        num_attention_heads=N,
        num_key_value_heads=K,
        num_hidden_layers=1,
        max_position_embeddings=longest,
        original_max_position_embeddings=24,
        rope_parameters={"rope_theta": 1e4, "rope_type": "longrope", **described},
        pad_token_id=0,
    )
    config._attn_implementation = "eager"
    made = theirs.Phi3Attention(config, 0)
    randomize(made)
    positions = np.arange(T)[None] + start
    layer = kerasattention.GroupQueryAttention(
        H,
        N,
        K,
        use_bias=False,
        use_causal_mask=True,
        position=RotaryPosition(scaling=LONGROPE),
    )
    layer.build((B, T, N * H))
    query, key, value = made.qkv_proj.weight.split([N * H, K * H, K * H])
    weights = dict(split("query", query, None, N))
    weights |= dict(split("key", key, None, K)) | dict(split("value", value, None, K))
    copy_weights(layer, weights | dict(joined(made.o_proj.weight, None, N)))
    x = np.random.default_rng(9).normal(size=(B, T, N * H)).astype("float32")
    angles = theirs.Phi3RotaryEmbedding(config)
    given = torch.as_tensor(x)
    embedded = angles(given, torch.as_tensor(positions))
    expected = as_numpy(made(given, embedded, additive(seen_by(layer, T)))[0])
    found = to_numpy(layer(tensor(x), positions=positions))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("length", [None, 16, 24, 25, 100])
@pytest.mark.parametrize("kind", ["longrope", "dynamic", "proportional"])
def test_scalings_are_those_of_transformers(kind, length):
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {
        "longrope": LONGROPE,
        "dynamic": {"type": "dynamic", "factor": 2.5, "original_max_position_embeddings": 24},
        "proportional": {"type": "proportional", "factor": 4.0, "partial_rotary_factor": 0.5},
    }[kind]
    described = {name: x for name, x in scaling.items() if name != "type"}
    longest = described.pop("max_position_embeddings", 24)
    described |= {"rope_type": kind, "rope_theta": 5e4}
    config = transformers.LlamaConfig(
        head_dim=8, max_position_embeddings=longest, rope_parameters=described
    )
    expected, factor = ROPE_INIT_FUNCTIONS[kind](config, seq_len=length)
    by_length = kind != "proportional" and length is not None
    ours = {**scaling, "length": length} if by_length else scaling
    found = RotaryPosition(5e4, scaling=ours).frequencies(8)
    np.testing.assert_allclose(found.values, expected.numpy(), rtol=2e-6)
    assert found.attention_factor == pytest.approx(factor)


def test_axial_sections_are_those_of_images_in_qwen2_vl():
    from transformers.models.qwen2_vl import modeling_qwen2_vl as theirs
    from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig

    config = Qwen2VLVisionConfig(embed_dim=N * H, num_heads=N)
    config._attn_implementation = "eager"
    made = theirs.VisionAttention(config)
    randomize(made)
    positions = np.random.default_rng(8).integers(0, 30, (1, T, 2))
    rotary = RotaryPosition(sections={"type": "axial", "sizes": (H // 4, H // 4)})
    layer = kerasattention.MultiHeadAttention(N, H, position=rotary)
    layer.build((1, T, N * H))
    weights = dict(joined(made.proj.weight, made.proj.bias, N))
    parts = zip(made.qkv.weight.chunk(3), made.qkv.bias.chunk(3), strict=True)
    for name, (weight, bias) in zip(("query", "key", "value"), parts, strict=True):
        weights |= dict(split(name, weight, bias, N))
    copy_weights(layer, weights)
    x = np.random.default_rng(9).normal(size=(1, T, N * H)).astype("float32")
    given = torch.as_tensor(x[0])
    angles = theirs.Qwen2VLVisionRotaryEmbedding(config)
    embedded = angles(given, torch.as_tensor(positions[0]))
    expected = as_numpy(made(given, torch.tensor([0, T]), position_embeddings=embedded))
    found = to_numpy(layer(tensor(x), positions=positions))[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_a_class_token_is_that_of_beit():
    from transformers.models.beit import modeling_beit as theirs
    from transformers.models.beit.configuration_beit import BeitConfig

    side, N, H = 3, 3, 4
    config = BeitConfig(
        hidden_size=N * H,
        num_attention_heads=N,
        image_size=side,
        patch_size=1,
        attention_probs_dropout_prob=0.0,
    )
    config._attn_implementation = "eager"
    made, relative = theirs.BeitAttention(config), theirs.BeitRelativePositionBias(config)
    randomize(made)
    randomize(relative)
    x = np.random.default_rng(9).normal(size=(B, side**2 + 1, N * H)).astype("float32")
    expected = as_numpy(made(torch.as_tensor(x), attention_mask=relative((side, side)))[0])
    position = kerasattention.RelativePosition(max_distance=side - 1, axes=2, class_token=True)
    layer = kerasattention.MultiHeadAttention(N, H, position=position)
    places = np.concatenate([[[0, 0]], np.indices((side, side)).reshape(2, -1).T])[None]
    layer.build(x.shape)
    weights = dict(joined(made.o_proj.weight, made.o_proj.bias, N))
    for name in ("query", "key", "value"):
        linear = getattr(made, f"{name[0]}_proj")
        bias = torch.zeros(N * H) if linear.bias is None else linear.bias
        weights |= dict(split(name, linear.weight, bias, N))
    copy_weights(layer, weights | {"table": as_numpy(relative.relative_position_bias_table)})
    found = to_numpy(layer(tensor(x), positions=places))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


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


# Relative keys ------------------------------------------------------------------------------------


def of_heads(weight, bias=None):
    """A projection of theirs (N * H, D), of rows (E, D), as a table (E, N, H)."""

    def table(rows):
        made = rows @ weight.T if bias is None else rows @ weight.T + bias
        return as_numpy(made).reshape(len(rows), N, H)

    return table


def check_same(layer, weights, expected, x):
    """Outputs of ours, with the weights of theirs, are those of theirs."""
    copy_weights(layer, weights)
    found = to_numpy(layer(tensor(x)))
    size = np.abs(as_numpy(expected)).max()
    np.testing.assert_allclose(found, as_numpy(expected), rtol=1e-5, atol=1e-5 * size)
    flash = type(layer).from_config({**layer.get_config(), "flash_attention": True})
    flash.build(x.shape)
    flash.set_weights(layer.get_weights())
    np.testing.assert_allclose(to_numpy(flash(tensor(x))), found, atol=1e-5 * size)


def drawn_input():
    return np.random.default_rng(9).normal(size=(B, T, N * H)).astype("float32")


def of_linears(made, names, output):
    weights = dict(joined(output.weight, output.bias, N))
    for name, theirs in zip(("query", "key", "value"), names, strict=True):
        linear = getattr(made, theirs)
        weights |= dict(split(name, linear.weight, linear.bias, N))
    return weights


def test_shaw_is_relative_key_of_wav2vec2_bert():
    from transformers.models.wav2vec2_bert import modeling_wav2vec2_bert as theirs
    from transformers.models.wav2vec2_bert.configuration_wav2vec2_bert import Wav2Vec2BertConfig

    left, right = 5, 2
    config = Wav2Vec2BertConfig(
        hidden_size=N * H,
        num_attention_heads=N,
        position_embeddings_type="relative_key",
        left_max_position_embeddings=left,
        right_max_position_embeddings=right,
        attention_dropout=0.0,
    )
    config._attn_implementation = "eager"
    made = theirs.Wav2Vec2BertSelfAttention(config)
    randomize(made)
    x = drawn_input()
    expected = made(torch.as_tensor(x))[0]
    layer = kerasattention.MultiHeadAttention(
        N, H, position=kerasattention.RelativeKeysPosition(left)
    )
    layer.build(x.shape)
    names = ("linear_q", "linear_k", "linear_v")
    weights = of_linears(made, names, made.linear_out)
    table = as_numpy(made.distance_embedding.weight)
    table = np.concatenate([table, np.repeat(table[-1:], left - right, axis=0)])
    check_same(layer, weights | {"key_table": table[:, None]}, expected, x)


def test_transformer_xl_is_relative_of_conformers():
    from transformers.models.wav2vec2_conformer import modeling_wav2vec2_conformer as theirs
    from transformers.models.wav2vec2_conformer.configuration_wav2vec2_conformer import (
        Wav2Vec2ConformerConfig,
    )

    config = Wav2Vec2ConformerConfig(
        hidden_size=N * H,
        num_attention_heads=N,
        position_embeddings_type="relative",
        max_source_positions=T,
        attention_dropout=0.0,
    )
    config._attn_implementation = "eager"
    made = theirs.Wav2Vec2ConformerSelfAttention(config)
    randomize(made)
    x = drawn_input()
    embedded = theirs.Wav2Vec2ConformerRelPositionalEmbedding(config)(torch.as_tensor(x))
    expected = made(torch.as_tensor(x), relative_position_embeddings=embedded)[0]
    layer = kerasattention.MultiHeadAttention(
        N, H, position=kerasattention.RelativeKeysPosition(5000, "transformer_xl")
    )
    layer.build(x.shape)
    weights = of_linears(made, ("linear_q", "linear_k", "linear_v"), made.linear_out)
    weights["position_kernel"] = as_numpy(made.linear_pos.weight).T.reshape(N * H, N, H)
    weights["content_bias"] = as_numpy(made.pos_bias_u)
    weights["position_bias"] = as_numpy(made.pos_bias_v)
    check_same(layer, weights, expected, x)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("buckets", [None, 4])
def test_deberta_is_the_attention_of_deberta_v2(buckets, shared):
    from transformers.models.deberta_v2 import modeling_deberta_v2 as theirs
    from transformers.models.deberta_v2.configuration_deberta_v2 import DebertaV2Config

    config = DebertaV2Config(
        hidden_size=N * H,
        num_attention_heads=N,
        relative_attention=True,
        pos_att_type=["c2p", "p2c"],
        max_relative_positions=9,
        position_buckets=buckets or -1,
        share_att_key=shared,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    made = theirs.DisentangledSelfAttention(config)
    randomize(made)
    x = drawn_input()
    rows = 2 * (buckets or 9)
    embeddings = torch.as_tensor(np.random.default_rng(4).normal(size=(rows, N * H))).float()
    mask = torch.ones(B, 1, T, T)
    expected, _ = made(torch.as_tensor(x), mask, rel_embeddings=embeddings)
    position = kerasattention.RelativeKeysPosition(
        9, "deberta", num_buckets=None if buckets is None else 2 * buckets
    )
    layer = kerasattention.MultiHeadAttention(
        N, H, position=position, scale=1 / float(np.sqrt(3 * H))
    )
    layer.build(x.shape)
    weights = {}
    for name in ("query", "key", "value"):
        linear = getattr(made, f"{name}_proj")
        weights |= dict(split(name, linear.weight, linear.bias, N))
    # The output projection is in another module of theirs.
    weights["attention_output/kernel"] = np.eye(N * H, dtype="float32").reshape(N, H, N * H)
    weights["attention_output/bias"] = np.zeros(N * H, "float32")
    keys = made.key_proj if shared else made.pos_key_proj
    queries = made.query_proj if shared else made.pos_query_proj
    weights["key_table"] = of_heads(keys.weight, keys.bias)(embeddings)
    weights["query_table"] = of_heads(queries.weight, queries.bias)(embeddings)
    check_same(layer, weights, expected, x)


@pytest.mark.parametrize(("buckets", "longest"), [(4, 9), (256, 512), (32, 512), (6, 40)])
def test_buckets_of_deberta_v2(buckets, longest):
    from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

    from kerasattention.positions.distance_tables import deberta_entries

    distances = torch.arange(2 * longest, -2 * longest - 1, -1)
    found = make_log_bucket_position(distances, buckets, longest).long()
    expected = torch.clamp(found + buckets, 0, 2 * buckets - 1).numpy()
    ours = np.array(deberta_entries(longest, 2 * buckets))
    places = np.clip(-distances.numpy(), -longest, longest) + longest
    np.testing.assert_array_equal(ours[places], expected)
