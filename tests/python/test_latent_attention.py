"""Latent attention against a float64 reference, and its decoding with a cache of latents."""

import math

import keras
import numpy as np
import pytest

import kerasattention as ka
from backends import (
    BACKEND,
    double,
    predicted,
    sampled,
    tensor,
    to_numpy,
    value_and_gradients_of_layer,
)
from kerasattention.layers.options import OPTIONS
from latent_reference import latent_attention
from option_checks import drawn, name_of
from problems import block_size

# Primes, but for the rotated features, of which there are pairs.
B, T, D, N, H, R, HV, C, Q = 2, 19, 13, 3, 5, 4, 11, 7, 17
VOCABULARY = 23


def latent(**options):
    sizes = {"num_heads": N, "head_dim": H, "kv_rank": C, "rotary_dim": R, "value_dim": HV}
    return ka.LatentAttention(**{**sizes, **options})


def with_weights(layer, seed=3):
    if not layer.built:
        layer.build((B, T, D))
    rng = np.random.default_rng(seed)
    weights = {}
    for variable in layer.trainable_variables:
        weights[name_of(variable)] = drawn(rng, variable)
        variable.assign(weights[name_of(variable)])
    return weights


def drawn_input(length=T, seed=5):
    return np.random.default_rng(seed).normal(size=(B, length, D))


PADDING = np.arange(T) >= np.array([[0], [6]])
SEGMENTS = np.array([[1] * 8 + [2] * 11, [3] * 2 + [1] * 15 + [0] * 2])
POSITIONS = np.sort(np.random.default_rng(4).integers(0, 90, (B, T)), axis=1)
BIAS = np.random.default_rng(3).normal(size=(B, N, T, T))

# For each case: options of the layer, arguments of the call, and what stands for them.
CASES = {
    "a latent of the keys": ({}, {}, {}),
    "causal, a latent of the queries": (
        {"query_rank": Q, "use_bias": True},
        {"use_causal_mask": True},
        {"causal": True},
    ),
    "window, sink, cap, padding": (
        {"sliding_window": 5, "attention_sink": True, "logit_soft_cap": 2.0, "query_rank": Q},
        {"use_causal_mask": True, "query_mask": PADDING, "key_mask": PADDING},
        {"causal": True, "window": 5, "cap": 2.0, "key_mask": PADDING},
    ),
    "segments, positions, gate": (
        {
            "use_gate": True,
            "use_bias": True,
            "position": ka.RotaryPosition(50.0, layout="half"),
            "scale": 0.3,
        },
        {"segment_ids": SEGMENTS, "positions": POSITIONS},
        {
            "segments": SEGMENTS,
            "positions": POSITIONS,
            "theta": 50.0,
            "layout": "half",
            "scale": 0.3,
        },
    ),
    "bias, mask": (
        {"value_dim": None},
        {"attention_bias": BIAS, "attention_mask": BIAS[:, :1] < 1.0},
        {"bias": BIAS, "mask": BIAS[:, :1] < 1.0},
    ),
}


KERNELS = [(case, flash) for case in CASES for flash in (False, True, "blocks")]


@pytest.mark.parametrize(("case", "flash"), sampled(KERNELS, 6))
def test_output_scores_and_gradients_are_those_of_the_reference(case, flash):
    options, call, wanted = CASES[case]
    layer = latent(**options, flash_attention=bool(flash))
    weights, x = with_weights(layer), drawn_input()
    upstream = np.random.default_rng(6).normal(size=(B, T, D))
    call = {name: tensor(a) if isinstance(a, np.ndarray) else a for name, a in call.items()}

    def reference(moved):
        own = {name: moved.get(name, value) for name, value in weights.items()}
        return latent_attention(own, moved.get("query", x), rotated=R, **wanted)

    expected, scores = reference({})
    with block_size(5 if flash == "blocks" else None):
        found = to_numpy(layer(tensor(x), **call))
        gradients = value_and_gradients_of_layer(layer, {"query": x}, tensor(upstream), **call)
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())
    if not flash:
        _, maps = layer(tensor(x), return_attention_scores=True, **call)
        np.testing.assert_allclose(to_numpy(maps), scores, atol=1e-5)
    named = ["query", *map(name_of, layer.trainable_variables)]
    rng = np.random.default_rng(8)
    for name, gradient in zip(named, gradients.values(), strict=True):
        value = ({"query": x} | weights)[name]
        along = rng.normal(size=value.shape)
        sides = [
            (reference({name: value + step * along})[0] * upstream).sum() for step in (1e-5, -1e-5)
        ]
        slope = (sides[0] - sides[1]) / 2e-5
        assert (gradient * along).sum() == pytest.approx(slope, rel=4e-4, abs=4e-4), name


def test_float64_is_exact(doubles):
    layer = latent(query_rank=Q, use_bias=True, dtype="float64")
    weights, x = with_weights(layer), drawn_input()
    expected, _ = latent_attention(weights, x, rotated=R, causal=True)
    found = to_numpy(layer(double(x), use_causal_mask=True))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("dtype", sampled(["bfloat16", "mixed_float16"], 2))
def test_low_precision_is_near(dtype):
    wide, low = latent(query_rank=Q), latent(query_rank=Q, dtype=dtype)
    x = tensor(drawn_input())
    with_weights(wide), with_weights(low)
    expected = to_numpy(wide(x))
    found = low(keras.ops.cast(x, low.compute_dtype))
    assert keras.backend.standardize_dtype(found.dtype) == low.compute_dtype
    np.testing.assert_allclose(to_numpy(found), expected, atol=0.06 * np.abs(expected).max())


def test_values_worked_by_hand():
    """One head, one number each: latents of (4, -4) are (1, -1), and no position turns them."""
    layer = ka.LatentAttention(1, 1, 1, rotary_dim=2, use_causal_mask=True, scale=1.0)
    layer.build((1, 2, 1))
    kernels = {
        "query": [[[math.log(3.0), 0.0, 0.0]]],
        "latent": [[1.0, 0.0, 0.0]],
        "latent_norm": [1.0],
        "key": [[[1.0]]],
        "value": [[[5.0]]],
        "attention_output": [[[1.0]]],
    }
    for weight in layer.trainable_variables:
        weight.assign(np.array(kernels[weight.path.split("/")[-2]]))
    # The second query is 4 * log(3) * (-1), times keys 1 and -1: weights 3^-8 : 1 of both.
    found = to_numpy(layer(tensor([[[4.0], [-4.0]]])))[0, :, 0]
    share = 1 / (1 + 3.0**8)
    np.testing.assert_allclose(found, [5.0, 5.0 * (share - (1 - share))], rtol=1e-5)


def test_yarn_changes_all_logits_by_its_magnitude():
    """DeepSeek-V3: factor 40 and `mscale_all_dim` 1 multiply all logits by 1.3689^2."""
    yarn = {"type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096}
    yarn |= {"mscale": 1.0, "mscale_all_dim": 1.0}
    x, call = tensor(drawn_input()), {"return_attention_scores": True}
    scaled = latent(position=ka.RotaryPosition(layout="interleaved", scaling=yarn))
    factor = (0.1 * math.log(40.0) + 1.0) ** 2
    given = latent(
        position=ka.RotaryPosition(layout="interleaved", scaling=yarn),
        scale=factor / math.sqrt(H + R),
    )
    with_weights(scaled), with_weights(given)
    found, expected = (to_numpy(layer(x, **call)[1]) for layer in (scaled, given))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert factor == pytest.approx(1.368888**2, rel=1e-6)


# Decoding -------------------------------------------------------------------------------------


def token_model(layers=1, **options):
    tokens = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(VOCABULARY, D, mask_zero=True)(tokens)
    for index in range(layers):
        x = x + latent(use_causal_mask=True, name=f"attention{index}", **options)(x)
    model = keras.Model(tokens, keras.layers.Dense(VOCABULARY)(x))
    rng = np.random.default_rng(4)
    for variable in model.trainable_variables:
        variable.assign(drawn(rng, variable))
    return model


def drawn_tokens(length=T):
    return np.random.default_rng(9).integers(1, VOCABULARY, (B, length)).astype("int32")


DECODED = {
    "two layers": {"layers": 2, "query_rank": Q, "use_bias": True},
    "a rolling cache": {"sliding_window": 4},
    "sink, cap, gate": {"attention_sink": True, "logit_soft_cap": 2.0, "use_gate": "head"},
    "a rule of positions": {"mask": ka.WindowMask(6) | ka.PrefixMask(2)},
    "learned scale, factors by position": {
        "scale": "learned",
        "query_scale": ka.ScaleByPosition(attn_scale=0.4, floor_scale=3),
    },
    "latents that are larger than the heads": {"kv_rank": 53},
}


@pytest.mark.parametrize("case", sampled(DECODED, 3))
def test_steps_give_what_full_passes_give(case):
    model, tokens = token_model(**DECODED[case]), drawn_tokens()
    full = predicted(model, tokens)
    decoder = ka.IncrementalDecoder(model, B, T)
    found = [(3, decoder.prefill(tokens[:, :4]))]
    found += [(at, decoder.step(tokens[:, at])) for at in range(4, 9)]
    found.append((12, decoder.step(tokens[:, 9:13])))
    found.append((T - 1, decoder.step(tokens[:, 13:])))
    for at, logits in found:
        np.testing.assert_allclose(to_numpy(logits), full[:, at], atol=2e-4, err_msg=str(at))
    # Prompts of two lengths, the shorter one padded on the left.
    decoder.reset()
    first = decoder.prefill([list(tokens[0, :3]), list(tokens[1, :7])])
    then = decoder.step(np.array([tokens[0, 3], tokens[1, 7]]))
    later = decoder.step(np.array([tokens[0, 4:6], tokens[1, 8:10]]))
    for logits, at in ((first, (2, 6)), (then, (3, 7)), (later, (5, 9))):
        np.testing.assert_allclose(to_numpy(logits), full[[0, 1], list(at)], atol=2e-4)


@pytest.mark.parametrize(
    ("options", "slots"), [({}, T), ({"sliding_window": 4}, 4), ({"dtype": "bfloat16"}, T)]
)
def test_a_cache_holds_the_latents_only(options, slots):
    decoder = ka.IncrementalDecoder(token_model(layers=2, **options), B, T)
    width = 2 if "dtype" in options else 4
    mask = B * slots  # the first layer's input has a Keras mask, of one byte each
    assert decoder.cache_bytes == 2 * B * slots * (C + R) * width + mask
    (_, size), *others = decoder.plan.specs[0].sizes.items()
    assert (size, others) == (C + R, [])


def test_steps_attend_over_the_latents(monkeypatch):
    lengths = []
    absorb = ka.LatentAttention._absorbed

    def noted(self, query):
        lengths.append(query.shape[1])
        return absorb(self, query)

    monkeypatch.setattr(ka.LatentAttention, "_absorbed", noted)
    model, tokens = token_model(), drawn_tokens()
    decoder = ka.IncrementalDecoder(model, B, T)
    decoder.prefill(tokens[:, :4])
    assert lengths == []
    decoder.step(tokens[:, 4])
    assert set(lengths) == {1}


def test_many_tokens_at_once_expand_the_latents():
    """A step multiplies by 2 (C + R) instead of 2 H + R + Hv: worth it up to some tokens."""
    layer = latent(kv_rank=53)
    layer.build((B, T, D))
    more, once = 2 * (53 + R) - (H + R) - HV, 53 * (H + HV)
    longest = (once - 1) // more
    assert layer._absorbs(longest)
    assert not layer._absorbs(longest + 1)
    assert layer._absorbs(None)


def test_generated_tokens_are_those_of_full_passes():
    model, tokens = token_model(layers=2), drawn_tokens(5)
    made = ka.generate(model, tokens, 6)
    full = predicted(model, made.astype("int32"))  # of a causal model: that of each prefix
    np.testing.assert_array_equal(made[:, 5:], full[:, 4:-1].argmax(-1))


def test_nan_that_no_query_sees_reaches_nothing():
    layer, x = latent(query_rank=Q), drawn_input()
    with_weights(layer)
    upstream = np.random.default_rng(6).normal(size=(B, T, D))
    key_mask = np.broadcast_to(np.arange(T) < 11, (B, T))
    upstream = upstream * key_mask[..., None]
    call = {"query_mask": tensor(key_mask), "key_mask": tensor(key_mask)}
    results = []
    for poison in (0.0, np.nan):
        changed = np.array(x)
        changed[:, 11:] = poison
        output = to_numpy(layer(tensor(changed), **call))[:, :11]
        gradients = value_and_gradients_of_layer(
            layer, {"query": changed}, tensor(upstream), **call
        )
        results.append((output, gradients))
    (expected, gradients), (output, found) = results
    np.testing.assert_allclose(output, expected, rtol=1e-6, atol=1e-6)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(found[name], gradient, rtol=1e-5, atol=1e-5, err_msg=name)


def test_a_query_without_keys_gets_the_bias():
    layer = latent(use_bias=True)
    weights = with_weights(layer)
    found = to_numpy(layer(tensor(drawn_input()), attention_mask=tensor(np.zeros((T, T), bool))))
    bias = weights["attention_output/bias"]
    np.testing.assert_allclose(found, np.broadcast_to(bias, found.shape), rtol=1e-6)


# Files, configs, whole models -----------------------------------------------------------------


OPTIONS_OF_FILES = {
    "query_rank": Q,
    "use_bias": True,
    "attention_sink": True,
    "mask": ka.CausalMask(),
    "position": ka.RotaryPosition(70.0, fraction=0.5, layout="half"),
    "kernel_initializer": keras.initializers.GlorotUniform(seed=3),
}


def test_config_and_files_bring_the_layer_back(tmp_path):
    inputs = keras.Input((None, D))
    layer = latent(**OPTIONS_OF_FILES, name="attention")
    model = keras.Model(inputs, layer(inputs))
    with_weights(layer)
    x = drawn_input().astype("float32")
    before = predicted(model, x)
    again = ka.LatentAttention.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(loaded.layers[-1], ka.LatentAttention)
    assert loaded.layers[-1].get_config() == layer.get_config()
    np.testing.assert_allclose(predicted(loaded, x), before, atol=1e-6)
    model.save_weights(tmp_path / "model.weights.h5")
    copy = keras.models.clone_model(model)
    copy.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_allclose(predicted(copy, x), before, atol=1e-6)


def test_kernels_draw_different_numbers_from_one_seed():
    layer = latent(query_rank=C + R, kernel_initializer=keras.initializers.GlorotUniform(seed=3))
    layer.build((B, T, C + R))
    first, second = (
        to_numpy(layer.projections()[name].kernel) for name in ("query_latent", "latent")
    )
    assert np.abs(first - second).max() > 0.1


def test_int8_models_decode_and_can_be_loaded(tmp_path):
    model, tokens = token_model(query_rank=Q), drawn_tokens()
    before = predicted(model, tokens)
    model.quantize("int8")
    after = predicted(model, tokens)
    np.testing.assert_allclose(after, before, atol=0.15 * np.abs(before).max())
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(predicted(loaded, tokens), after, atol=1e-5)
    decoder = ka.IncrementalDecoder(model, B, T)
    decoder.prefill(tokens[:, :4])
    found = to_numpy(decoder.step(tokens[:, 4]))
    np.testing.assert_allclose(found, after[:, 4], atol=2e-3 * np.abs(after).max())


def test_lora_trains_the_projections_and_decodes():
    model, tokens = token_model(), drawn_tokens()
    ka.enable_lora(model, 2, projections=("query", "key", "value", "output"))
    assert len(model.trainable_variables) == 8
    rng = np.random.default_rng(1)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(size=variable.shape) * 0.3)
    full = predicted(model, tokens)
    decoder = ka.IncrementalDecoder(model, B, T)
    decoder.prefill(tokens[:, :4])
    for at in range(4, 7):
        np.testing.assert_allclose(to_numpy(decoder.step(tokens[:, at])), full[:, at], atol=2e-4)


def test_heads_can_be_looked_at_and_removed():
    model, tokens = token_model(), drawn_tokens()
    (found,) = ka.attention_scores(model, tokens)
    layer = model.get_layer("attention0")
    x = model.layers[1](tensor(tokens, "int32"))
    _, expected = layer(x, return_attention_scores=True)
    np.testing.assert_allclose(found.weights, to_numpy(expected), atol=1e-5)
    assert ka.attention_rollout([found]).shape == (1, B, T, T)

    y = np.random.default_rng(2).integers(0, VOCABULARY, (B, T))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    (importance,) = ka.head_importance(model, tokens, y, loss=loss).values()
    assert importance.shape == (N,)

    # A head whose results are multiplied by 0 gives what the model without it gives.
    smaller = ka.prune_heads(model, {"attention0": [1]})
    output = layer.projection("output")
    kernel = to_numpy(output.kernel)
    kernel[1] = 0.0
    output.kernel.assign(kernel)
    kept = smaller.get_layer("attention0")
    assert kept.num_heads == N - 1
    assert tuple(kept.projection("key").kernel.shape) == (C, N - 1, H)
    np.testing.assert_allclose(predicted(smaller, tokens), predicted(model, tokens), atol=1e-5)


def test_what_cannot_be_done_is_refused_by_name():
    model = token_model()
    with pytest.raises(ValueError, match=r"'attention0' is a LatentAttention.*one latent"):
        ka.convert_attention(model, num_key_value_heads=1)
    assert predicted(ka.convert_attention(model), drawn_tokens()).shape == (B, T, VOCABULARY)
    layer = model.get_layer("attention0")
    with pytest.raises(ValueError, match=r"'attention0' is a LatentAttention.*set_weights"):
        ka.load_projections(layer, np.ones(1), np.ones(1), np.ones(1), np.ones(1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 0}, "`num_heads` must be a positive integer. Received: num_heads=0"),
        ({"kv_rank": 2.5}, "`kv_rank` must be a positive integer. Received: kv_rank=2.5"),
        ({"query_rank": 0}, "`query_rank` must be `None` or a positive integer"),
        (
            {"rotary_dim": None},
            "`rotary_dim` must be a positive integer. Received: rotary_dim=None",
        ),
        ({"rotary_dim": 3}, "`rotary_dim` must be even.*Received: rotary_dim=3"),
        ({"value_dim": -1}, "`value_dim` must be `None` or a positive integer"),
        ({"qk_norm": True}, "`qk_norm` is no option of `LatentAttention`, whose latents are norm"),
        ({"value_norm": True}, "`value_norm` is no option of `LatentAttention`"),
        ({"attention_axes": (1,)}, "`attention_axes` is no option of `LatentAttention`"),
        ({"position": ka.AlibiPosition()}, "`position` of `LatentAttention` must be a `RotaryPos"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        latent(**options)


def test_inputs_that_do_not_fit_are_refused():
    x = tensor(drawn_input())
    with pytest.raises(ValueError, match=r"is a self-attention: give `query` only.*\(2, 7, 13\)"):
        latent()(x, x[:, :7])
    with pytest.raises(ValueError, match=r"must have 3 axes .*Received: query \(1, 2, 19, 13\)"):
        latent()(x[None])
    layer = latent()
    layer(x)
    with pytest.raises(ValueError, match="built for query, value and key features"):
        layer(x[..., :5])
    with pytest.raises(ValueError, match=r"`fraction` . head size must be even"):
        latent(position=ka.RotaryPosition(fraction=0.25))(x)


def test_the_signature_has_every_option_that_it_takes():
    import inspect

    names = set(inspect.signature(ka.LatentAttention.__init__).parameters)
    assert set(OPTIONS) - names == {"qk_norm", "value_norm", "use_key_as_value", "key_value_of"}
    assert "qk_norm" not in ka.LatentAttention.__doc__
    assert "logit_soft_cap" in ka.LatentAttention.__doc__


def test_training_changes_every_weight():
    model, tokens = token_model(query_rank=Q), drawn_tokens()
    before = [to_numpy(x.value) for x in model.trainable_variables]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, jit_compile=False if BACKEND == "tensorflow" else "auto")
    model.fit(tokens, np.roll(tokens, -1, axis=1), epochs=1, verbose=0)
    for variable, old in zip(model.trainable_variables, before, strict=True):
        assert np.abs(to_numpy(variable.value) - old).max() > 0, variable.path
