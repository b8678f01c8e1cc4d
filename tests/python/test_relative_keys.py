"""Relative keys in layers: three kinds against their formulas, decoders, files and errors."""

import keras
import numpy as np
import pytest

import kerasattention as ka
import layer_reference
import option_checks as checks
import reference
from backends import (
    BACKEND,
    compiled,
    predicted,
    sampled,
    tensor,
    to_numpy,
    value_and_gradients,
    value_and_gradients_of_layer,
)
from kerasattention import RelativeKeysPosition
from kerasattention.positions.relative_keys import deberta_entries, sinusoids
from layer_twins import weights_of
from problems import block_size

B, T, D, H, N, K = 2, 13, 5, 4, 6, 3
X = np.random.default_rng(0).normal(size=(B, T, D)).astype("float32")
PLACES = np.random.default_rng(1).integers(0, 17, (B, T))

POSITIONS = {
    "shaw": lambda: RelativeKeysPosition(4),
    "huang": lambda: RelativeKeysPosition(4, "huang"),
    "transformer_xl": lambda: RelativeKeysPosition(4, "transformer_xl"),
    "transformer_xl, all distances": lambda: RelativeKeysPosition(99, "transformer_xl", width=7),
    "deberta": lambda: RelativeKeysPosition(4, "deberta"),
    "deberta, buckets": lambda: RelativeKeysPosition(9, "deberta", num_buckets=8),
}
KINDS = ("shaw", "huang", "transformer_xl", "deberta")


def heads_of(kind):
    return (N, N) if kind.startswith(("deberta", "huang")) else (N, K)


def layer_of(kind, position=None, **options):
    heads = heads_of(kind)
    made = ka.GroupQueryAttention(H, *heads, position=position or POSITIONS[kind](), **options)
    made.build((B, T, D))
    rng = np.random.default_rng(3)
    for variable in made.trainable_variables:
        variable.assign(rng.normal(size=variable.shape) / np.sqrt(variable.shape[0]))
    return made


def sine_keys(position, kernel, distance):
    """Of one distance, key less query: the projected sinusoids (N, H)."""
    width = kernel.shape[0]
    away = -max(-position.max_distance, min(position.max_distance, distance))
    waves = np.zeros(width)
    for i in range(width):
        angle = away / 10000.0 ** (2 * (i // 2) / width)
        waves[i] = np.sin(angle) if i % 2 == 0 else np.cos(angle)
    return np.tensordot(waves, kernel, 1)


def deberta_row(position, distance):
    """As the published code has it, for query less key."""
    away, buckets = -distance, position.num_buckets
    span = position.max_distance
    if buckets is not None:
        span, exact = buckets // 2, buckets // 4
        if abs(away) > exact:
            growth = np.log(abs(away) / exact) / np.log((position.max_distance - 1) / exact)
            away = np.sign(away) * (np.ceil(growth * (exact - 1) - 1e-6) + exact)
    return int(max(0, min(2 * span - 1, away + span)))


def logits_of(kind, position, weights, query, key, distance):
    """(N) logits of one query (N, H) and one key (K, H), without the scale."""
    groups = query.shape[0] // key.shape[0]
    key = np.repeat(key, groups, axis=0)
    if kind in ("shaw", "huang"):
        far = max(-position.max_distance, min(position.max_distance, distance))
        relative = weights["key_table"][far + position.max_distance]
        of_key = (key * relative).sum(-1) if kind == "huang" else 0
        return (query * (key + relative)).sum(-1) + of_key
    if kind.startswith("transformer_xl"):
        relative = sine_keys(position, weights["position_kernel"], distance)
        of_content = (query + weights["content_bias"]) * key
        return (of_content + (query + weights["position_bias"]) * relative).sum(-1)
    row = deberta_row(position, distance)
    c2p = query * weights["key_table"][row]
    return (query * key + c2p + key * weights["query_table"][row]).sum(-1)


def expected_output(kind, layer, x, places=None, causal=True, window=None, scale=None, own=None):
    own = own or {}
    weights = weights_of(layer)
    weights = {name: own.get(name, value.astype(float)) for name, value in weights.items()}
    relative = {name.split("/")[-1]: value for name, value in weights.items()}
    heads = [layer_reference.project(weights, name, x) for name in ("query", "key", "value")]
    samples, length = x.shape[:2]
    places = np.broadcast_to(np.arange(length) if places is None else places, (samples, length))
    logits = np.zeros((samples, N, length, length))
    for b, t, s in np.ndindex(samples, length, length):
        logits[b, :, t, s] = logits_of(
            kind,
            layer.position,
            relative,
            heads[0][b, t],
            heads[1][b, s],
            places[b, s] - places[b, t],
        )
    logits *= 1.0 / np.sqrt(H) if scale is None else scale
    seen = reference.visible(
        samples,
        N,
        length,
        length,
        causal=causal,
        window=window,
        query_positions=places,
        key_positions=places,
    )
    nothing = [np.zeros_like(x) for x in heads[:2]]
    found, _ = reference.attention(*nothing, heads[2], seen=seen, bias=logits)
    output = np.tensordot(found, weights["attention_output/kernel"], 2)
    return output + weights["attention_output/bias"]


@pytest.mark.parametrize("flash", [False, True])
@pytest.mark.parametrize("kind", sampled(POSITIONS, 2))
def test_outputs_are_those_of_the_formulas(kind, flash):
    layer = layer_of(kind, use_causal_mask=True, sliding_window=8, flash_attention=flash)
    expected = expected_output(kind, layer, X, window=8)
    with block_size(4):
        found = to_numpy(compiled(lambda x: layer(x))(tensor(X)))
        at = to_numpy(layer(tensor(X), positions=PLACES))
    np.testing.assert_allclose(found, expected, atol=2e-5)
    expected = expected_output(kind, layer, X, PLACES, window=8)
    np.testing.assert_allclose(at, expected, atol=2e-5)


@pytest.mark.parametrize("kind", sampled(POSITIONS, 2))
def test_both_sides_and_a_scale(kind):
    layer = layer_of(kind, scale=0.3)
    expected = expected_output(kind, layer, X, causal=False, scale=0.3)
    output, scores = layer(tensor(X), return_attention_scores=True)
    np.testing.assert_allclose(to_numpy(output), expected, atol=2e-5)
    assert scores.shape == (B, N, T, T)
    real = PLACES[:1] + 0.5
    found = to_numpy(layer(tensor(X), positions=real))
    same = to_numpy(layer(tensor(X), positions=PLACES[:1]))
    np.testing.assert_allclose(found, same, atol=1e-5)


@pytest.mark.parametrize("kind", sampled(POSITIONS, 2))
def test_gradients_reach_queries_keys_and_tables(kind):
    """Against central differences of the reference along one direction for each weight."""
    upstream = np.random.default_rng(6).normal(size=(B, T, D))
    for flash in (False, True):
        layer = layer_of(kind, use_causal_mask=True, flash_attention=flash)
        with block_size(4):
            found = value_and_gradients_of_layer(layer, {"query": X}, tensor(upstream))
        found.pop("query")
        rng = np.random.default_rng(8)
        own = layer.path.count("/") + 1
        for variable, gradient in zip(layer.trainable_variables, found.values(), strict=True):
            name = "/".join(variable.path.split("/")[own:])
            here = to_numpy(variable.value).astype(float)
            along = rng.normal(size=here.shape)
            sides = [
                expected_output(kind, layer, X, own={name: here + step * along})
                for step in (1e-5, -1e-5)
            ]
            slope = ((sides[0] - sides[1]) * upstream).sum() / 2e-5
            assert (gradient * along).sum() == pytest.approx(slope, rel=5e-4, abs=5e-4), name


@pytest.mark.parametrize("kind", sampled(KINDS, 2))
def test_long_sequences_hold_no_scores_and_give_the_same(kind):
    """Above 512 x 512 logits, where the plain kernel is not chosen."""
    x = np.random.default_rng(2).normal(size=(1, 601, D)).astype("float32")
    layer = layer_of(kind, use_causal_mask=True)
    fused = layer_of(kind, use_causal_mask=True, flash_attention=True)
    plain = layer_of(kind, use_causal_mask=True, flash_attention=False)
    expected = to_numpy(plain(tensor(x)))
    for each in (layer, fused):
        np.testing.assert_allclose(to_numpy(each(tensor(x))), expected, atol=2e-5)


@pytest.mark.parametrize("kind", ["shaw", "huang", "transformer_xl", "deberta, buckets"])
def test_decoding_is_that_of_full_passes(kind, monkeypatch):
    if heads_of(kind) == (N, N):
        monkeypatch.setattr(checks, "K", checks.N)
    checks.check_decoding(position=POSITIONS[kind]())
    checks.check_decoding(position=POSITIONS[kind](), sliding_window=3)


def test_one_query_has_the_logits_and_gradients_of_several(monkeypatch):
    """Of kind "transformer_xl", where the sinusoids are not projected for one query on torch."""
    layer = layer_of("transformer_xl", dtype="float32")
    x, upstream = X[:, :1], np.random.default_rng(6).normal(size=(B, 1, D))
    further = {"value": X}

    def run():
        return value_and_gradients_of_layer(layer, {"query": x, **further}, tensor(upstream))

    expected = to_numpy(layer(tensor(np.repeat(x, 2, axis=1)), tensor(X)))[:, :1]
    np.testing.assert_allclose(to_numpy(layer(tensor(x), tensor(X))), expected, atol=1e-5)
    found = run()
    monkeypatch.setattr(RelativeKeysPosition, "_is_step", lambda self, query: False)
    for name, gradient in run().items():
        np.testing.assert_allclose(found[name], gradient, atol=1e-5, err_msg=name)


def test_generated_tokens_are_the_most_likely_of_full_passes():
    model = checks.token_model({"position": RelativeKeysPosition(4)})
    tokens = np.array([[3, 1, 4]])
    found = ka.generate(model, tokens, 9)
    logits = predicted(model, found)  # of a causal model: those of each prefix
    np.testing.assert_array_equal(found[0, 3:], logits[0, 2:-1].argmax(-1))


@pytest.mark.parametrize("kind", sampled(POSITIONS, 2))
def test_files_and_configs(kind, tmp_path):
    inputs = keras.Input((None, D))
    layer = layer_of(kind, name="attention")
    model = keras.Model(inputs, layer(inputs))
    expected = predicted(model, X)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(predicted(loaded, X), expected, atol=1e-6)
    config = layer.position.get_config()
    assert RelativeKeysPosition.from_config(config).get_config() == config


@pytest.mark.parametrize("kind", sampled(KINDS, 2))
def test_pruned_heads_keep_the_others(kind):
    inputs = keras.Input((None, D))
    layer = ka.MultiHeadAttention(N, H, position=POSITIONS[kind](), name="attention")
    model = keras.Model(inputs, layer(inputs))
    rng = np.random.default_rng(3)
    for variable in layer.trainable_variables:
        variable.assign(rng.normal(size=variable.shape))
    kept = [0, 2, 3, 5]
    kernel = next(v for v in layer.weights if v.path.endswith("attention_output/kernel"))
    silent = to_numpy(kernel.value).copy()
    pruned = ka.prune_heads(model, {"attention": [1, 4]})
    found = predicted(pruned, X)
    silent[[1, 4]] = 0
    kernel.assign(silent)
    np.testing.assert_allclose(found, predicted(model, X), atol=1e-4)
    assert pruned.layers[-1].position.num_heads == len(kept)


def test_layers_share_the_tables():
    shared = RelativeKeysPosition(4)
    inputs = keras.Input((None, 12))
    x = ka.MultiHeadAttention(3, H, position=shared)(inputs)
    model = keras.Model(inputs, ka.MultiHeadAttention(3, H, position=shared)(x))
    assert len(model.weights) == 2 * 8 + 1
    with pytest.raises(ValueError, match=r"3 heads of size 4.*5 query heads of size 4"):
        ka.MultiHeadAttention(5, H, position=shared)(inputs)


@pytest.mark.parametrize("kind", sampled(KINDS, 2))
def test_masked_out_nan_reaches_no_output_and_no_gradient(kind):
    layer = layer_of(kind)
    x = X.copy()
    x[0, 10:] = np.nan
    mask = np.ones((B, T), bool)
    mask[0, 10:] = False
    upstream = np.random.default_rng(6).normal(size=(B, T, D))
    options = {"query_mask": tensor(mask, "bool"), "value_mask": tensor(mask, "bool")}
    clean = np.where(np.isnan(x), 0.0, x).astype("float32")
    expected = to_numpy(layer(tensor(clean), **options))
    np.testing.assert_allclose(to_numpy(layer(tensor(x), **options)), expected, atol=1e-6)
    wanted = value_and_gradients_of_layer(layer, {"query": clean}, tensor(upstream), **options)
    found = value_and_gradients_of_layer(layer, {"query": x}, tensor(upstream), **options)
    for name, gradient in wanted.items():
        if name != "query":
            np.testing.assert_allclose(found[name], gradient, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("dtype", ["mixed_float16", "bfloat16"])
def test_low_precision_is_near_float32(dtype):
    exact = layer_of("deberta")
    low = ka.GroupQueryAttention(H, N, N, position=POSITIONS["deberta"](), dtype=dtype)
    low.build((B, T, D))
    low.set_weights(exact.get_weights())
    expected = to_numpy(exact(tensor(X)))
    found = to_numpy(low(tensor(X)))
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


def test_float64(doubles):
    if BACKEND == "tensorflow":
        return  # the tables below are float32 there until the layer is float64
    layer = layer_of("shaw", RelativeKeysPosition(4, dtype="float64"), dtype="float64")
    expected = expected_output("shaw", layer, X.astype(float), causal=False)
    found = to_numpy(layer(keras.ops.convert_to_tensor(X.astype("float64"))))
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-11)


# Tables -----------------------------------------------------------------------------------------


def test_sinusoids_by_hand():
    found = sinusoids(2, 4)
    assert found.shape == (5, 4)
    np.testing.assert_allclose(found[2], [0, 1, 0, 1])
    two = [np.sin(2), np.cos(2), np.sin(0.02), np.cos(0.02)]
    np.testing.assert_allclose(found[0], two)  # a key two before the query
    np.testing.assert_allclose(found[4], [-two[0], two[1], -two[2], two[3]])
    assert sinusoids(1, 3).shape == (3, 3)


def test_deberta_entries_by_hand():
    # Query less key: 3, 2, 1, 0, -1, -2, -3, and three more to each side share the ends.
    assert deberta_entries(3, None) == (5, 5, 4, 3, 2, 1, 0)
    found = deberta_entries(9, 8)  # 2 exact on each side, then a logarithm
    at = dict(zip(range(-9, 10), found, strict=True))
    assert [at[-d] for d in range(4)] == [4, 5, 6, 7]
    assert [at[d] for d in range(5)] == [4, 3, 2, 1, 1]
    assert (at[-9], at[9]) == (7, 0)


def test_a_position_gives_its_keys_to_look_at():
    for kind, make in POSITIONS.items():
        position = make()
        position.prepare(N, H)
        found = to_numpy(position(tensor(np.arange(-12, 13).reshape(5, 5))))
        assert found.shape == (5, 5, 1 if kind in ("shaw", "huang") else N, H)
    shaw = RelativeKeysPosition(4)
    shaw.prepare(N, H)
    np.testing.assert_array_equal(
        to_numpy(shaw(tensor(np.array([-7, 1])))), to_numpy(shaw.key_table.value)[[0, 5]]
    )


WRONG = {
    "kind": (lambda: RelativeKeysPosition(4, "xl"), "`kind` must be one of.*'xl'"),
    "distance": (lambda: RelativeKeysPosition(0), "`max_distance`.*from 1 to 262144.*=0"),
    "real": (lambda: RelativeKeysPosition(2.5), "`max_distance`.*2.5"),
    "buckets of shaw": (
        lambda: RelativeKeysPosition(4, num_buckets=8),
        '`num_buckets` is for.*"deb',
    ),
    "buckets": (
        lambda: RelativeKeysPosition(40, "deberta", num_buckets=10),
        "`num_buckets` must be an integer of at least 8, a multiple of 4.*=10",
    ),
    "buckets beyond": (
        lambda: RelativeKeysPosition(3, "deberta", num_buckets=8),
        "less than `max_distance` - 1.*max_distance=3",
    ),
    "width": (lambda: RelativeKeysPosition(4, width=3), '`width` is for the kind "transformer_xl"'),
    "grouped": (
        lambda: ka.GroupQueryAttention(H, N, K, position=POSITIONS["deberta"]())(X),
        "as many key/value heads as query heads.*6 query heads, 3 key/value heads",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_refused(name):
    make, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("heads", [1, 2])
def test_rows_of_a_batch_do_not_touch_each_other(kind, heads):
    """oneDNN multiplies (B, 1, t, H) and (1, 1, H, L) wrongly, which TensorFlow does not say."""
    layer = ka.MultiHeadAttention(heads, 4, position=RelativeKeysPosition(6, kind))
    x = np.random.default_rng(5).normal(size=(3, 16, D)).astype("float32")
    layer.build(x.shape, x.shape)
    together, gradients = value_and_input_gradient(layer, x)
    for row in range(3):
        alone, gradient = value_and_input_gradient(layer, x[row : row + 1])
        np.testing.assert_allclose(together[row : row + 1], alone, atol=1e-5)
        np.testing.assert_allclose(gradients[row : row + 1], gradient, atol=1e-5)


def value_and_input_gradient(layer, x):
    upstream = tensor(np.ones(x.shape))
    outputs, gradients = value_and_gradients(
        lambda query: (layer(query, query),), {"query": x}, upstream
    )
    return outputs[0], gradients["query"]
