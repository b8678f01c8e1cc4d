"""The argument `mask` of the layers: against the reference, saved, cached, beside others."""

import keras
import numpy as np
import pytest
from keras import ops

import kerasattention as ka
from backends import BACKEND, compiled, tensor, to_numpy
from decoding_models import (
    PROMPT,
    draw_tokens,
    full_pass,
    model_of,
    next_logits,
    numpy,
)
from kerasattention import (
    AlibiPosition,
    BlockMask,
    CausalMask,
    ChunkMask,
    DilatedMask,
    MaskFunction,
    PrefixMask,
    RelativePosition,
    RotaryPosition,
    WindowMask,
)
from layer_reference import attention_layer
from layer_twins import randomize, weights_of

B, T, D = 2, 13, 10


@keras.saving.register_keras_serializable(package="tests of layers")
def near_or_early(q, k):
    return ops.logical_or(k * k < 2 * q, k < 3)


X = np.random.default_rng(1).normal(size=(B, T, D)).astype("float32")
Q, K = np.arange(T)[:, None], np.arange(T)[None]
SINKS = CausalMask() & (WindowMask(4) | PrefixMask(2))
SEEN = (K <= Q) & ((Q - K < 4) | (K < 2))


def layer_of(kind, **options):
    if kind == "multi-head":
        made = ka.MultiHeadAttention(4, 5, **options)
    else:
        made = ka.GroupQueryAttention(5, 6, 3, **options)
    made.build((B, T, D))
    randomize(made)
    return made


def expected(layer, seen, x=X, **options):
    mask = np.broadcast_to(seen, (B, layer.heads.query, T, T))
    return attention_layer(weights_of(layer), x.astype(float), mask=mask, **options)[0]


def close(found, wanted):
    np.testing.assert_allclose(to_numpy(found), wanted, rtol=1e-4, atol=2e-5)


KINDS = ["multi-head", "grouped"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_obeys_its_mask(kind):
    layer = layer_of(kind, mask=SINKS)
    close(layer(X), expected(layer, SEEN))
    scores = layer(X, return_attention_scores=True)[1]
    assert not to_numpy(scores)[np.broadcast_to(~SEEN, scores.shape)].any()
    # In a graph, its lengths known and unknown.
    close(compiled(layer)(tensor(X)), expected(layer, SEEN))


def test_a_mask_is_joined_to_all_others():
    padding = np.arange(T) < np.array([[T], [5]])
    given = (K * Q) % 3 != 1
    layer = layer_of("grouped", mask=ChunkMask(5), sliding_window=4, use_causal_mask=True)
    seen = (Q // 5 == K // 5) & (K <= Q) & (Q - K < 4) & given & padding[:, None, None, :]
    found = layer(X, attention_mask=given, value_mask=padding)
    close(found, expected(layer, seen))
    segments = np.array([[1] * 6 + [2] * 7, [1] * 3 + [2] * 6 + [0] * 4])
    same = (segments[:, None, :, None] == segments[:, None, None, :]) & (segments != 0)[
        :, None, None
    ]
    layer = layer_of("grouped", mask=SINKS)
    close(layer(X, segment_ids=segments), expected(layer, SEEN & same))


def test_a_mask_compares_the_positions_of_a_call():
    positions = np.random.default_rng(2).integers(0, 17, (B, T)).astype("int32")
    q, k = positions[:, None, :, None], positions[:, None, None, :]
    layer = layer_of("grouped", mask=SINKS | DilatedMask(5))
    seen = (k <= q) & ((q - k < 4) | (k < 2)) | (abs(q - k) % 5 == 0)
    close(layer(X, positions=positions), expected(layer, seen))


def test_cross_attention_has_a_mask_too():
    other = np.random.default_rng(3).normal(size=(B, 7, D)).astype("float32")
    layer = layer_of("multi-head", mask=WindowMask(3, 2))
    seen = (K[:, :7] > Q - 3) & (K[:, :7] < Q + 2)
    wanted = attention_layer(
        weights_of(layer),
        X.astype(float),
        other.astype(float),
        mask=np.broadcast_to(seen, (B, 4, T, 7)),
    )[0]
    close(layer(X, other), wanted)


@pytest.mark.parametrize(
    "position", [RotaryPosition(), AlibiPosition(), RelativePosition(8, 20)], ids=type
)
def test_a_causal_mask_is_use_causal_mask(position):
    """Positions that differ for causal layers know it too."""
    options = {"sliding_window": 6, "position": position}
    one = ka.GroupQueryAttention(6, 4, 2, **options, use_causal_mask=True)
    two = ka.GroupQueryAttention(6, 4, 2, position=position, mask=CausalMask() & WindowMask(6))
    for layer in (one, two):
        layer.build(X.shape)
    two.set_weights(one.get_weights())
    close(two(X), to_numpy(one(X)))


@pytest.mark.parametrize("mask", [SINKS, MaskFunction(near_or_early), ~BlockMask(np.eye(3), 5)])
def test_a_file_keeps_the_mask(mask, tmp_path):
    model = keras.Sequential([keras.Input((T, D)), ka.MultiHeadAttention(2, 3, mask=mask)])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.layers[0].mask == mask
    np.testing.assert_array_equal(to_numpy(loaded(X)), to_numpy(model(X)))
    assert "mask" not in ka.MultiHeadAttention(2, 3).get_config()


def test_what_is_no_mask_is_refused():
    with pytest.raises(ValueError, match="`mask` must be `None` or a mask such as"):
        ka.MultiHeadAttention(2, 3, mask=np.ones((3, 3), bool))
    with pytest.raises(ValueError, match=r"up to 6 queries.*Received: 13 queries and 13 keys"):
        layer_of("grouped", mask=BlockMask([[1, 0]], 6))(X)


def test_models_with_masks_are_inspected():
    inputs = keras.Input((T, D))
    model = keras.Model(inputs, ka.MultiHeadAttention(2, 3, mask=SINKS)(inputs))
    (found,) = ka.attention_scores(model, X)
    assert not np.asarray(found.weights)[..., ~SEEN].any()
    assert ka.convert_attention(model, 1).layers[-1].mask == SINKS


@pytest.mark.filterwarnings("ignore:The object being serialized includes a `lambda`")
def test_copies_of_a_layer_share_a_function_without_a_name():
    mask = CausalMask() & MaskFunction(lambda q, k: (q - k) % 3 != 1)
    inputs = keras.Input((T, D))
    model = keras.Model(inputs, ka.MultiHeadAttention(4, 3, mask=mask, name="a")(inputs))
    copy = keras.models.clone_model(model)
    assert copy.get_layer("a").mask == mask
    assert ka.convert_attention(model, 2).layers[-1].mask == mask
    assert ka.prune_heads(model, {"a": [1, 2]}).get_layer("a").mask == mask


# With a cache -----------------------------------------------------------------------------

CACHED = {
    "sinks": SINKS,
    "chunks": CausalMask() & ChunkMask(4),
    "dilated window": CausalMask() & DilatedMask(2) & WindowMask(7),
    "blocks": CausalMask() & BlockMask(np.random.default_rng(5).random((4, 4)) < 0.7, 4),
    "function": CausalMask() & MaskFunction(near_or_early),
    "prefix": CausalMask() | PrefixMask(3),
    "one-sided window": WindowMask(4, 1),
    "not": CausalMask() & ~WindowMask(2) | CausalMask() & WindowMask(1),
}


def attending(mask, **options):
    def body(x):
        for _ in range(2):
            x = x + ka.GroupQueryAttention(6, 4, 2, mask=mask, **options)(x)
        return x

    return body


def near(found, wanted):
    size = max(1.0, np.abs(wanted).max())
    np.testing.assert_allclose(numpy(found), wanted, rtol=1e-4, atol=1e-4 * size)


@pytest.mark.parametrize("name", CACHED if BACKEND != "jax" else ["sinks", "chunks", "prefix"])
def test_a_cache_gives_what_full_passes_give(name):
    model = model_of(attending(CACHED[name], position=RotaryPosition()))
    tokens = draw_tokens()
    wanted = full_pass(model, tokens)
    decoder = ka.IncrementalDecoder(model, len(tokens), 13)
    near(decoder.prefill(tokens[:, :PROMPT]), wanted[:, PROMPT - 1])
    near(decoder.step(tokens[:, PROMPT : PROMPT + 2]), wanted[:, PROMPT + 1])
    for at in range(PROMPT + 2, tokens.shape[1]):
        near(decoder.step(tokens[:, at]), wanted[:, at])


@pytest.mark.parametrize("name", CACHED if BACKEND != "jax" else ["chunks"])
def test_prompts_of_different_lengths_keep_their_positions(name):
    """Padding on the left shifts indices, not positions."""
    model = model_of(attending(CACHED[name]))
    tokens = draw_tokens(2)
    prompts = [tokens[0, :5], tokens[1, :3]]
    found = ka.generate(model, prompts, 6)
    for row, prompt in zip(found, prompts, strict=True):
        alone = ka.generate(model, prompt[None], 6)
        np.testing.assert_array_equal(row, alone[0])
        wanted = next_logits(model, alone[:, :-1], 12)
        assert alone[0, -1] == np.argmax(wanted[0])


def test_a_mask_that_sees_tokens_to_come_is_refused():
    with pytest.raises(ValueError, match="not causal"):
        ka.IncrementalDecoder(model_of(attending(WindowMask(3))), 1, 9)
    decoder = ka.IncrementalDecoder(model_of(attending(CausalMask() | PrefixMask(4))), 1, 9)
    with pytest.raises(ValueError, match=r"at least 4 tokens. Received: a prompt of 3"):
        decoder.prefill(draw_tokens(1)[:, :3])
    short = CausalMask() & BlockMask(np.ones((2, 2)), 4)
    decoder = ka.IncrementalDecoder(model_of(attending(short)), 1, 20)
    decoder.prefill(draw_tokens(1)[:, :8])
    with pytest.raises(ValueError, match=r"up to 8 queries and 8 keys. Received: 9 queries"):
        decoder.step(np.array([1]))
