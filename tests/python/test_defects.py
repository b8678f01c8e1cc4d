"""Each defect of Keras 3.15's attention layers, by name: what ours does instead."""

import warnings

import keras
import numpy as np
import pytest

from backends import tensor, to_numpy
from kerasattention import GroupQueryAttention, MultiHeadAttention
from kerasattention._keras import get_keras_mask, set_keras_mask
from layer_reference import attention_layer
from layer_twins import call, random_inputs, randomize, weights_of

B, T, S, D, DV, DK, N, H, HV = 3, 5, 7, 11, 13, 17, 2, 19, 23
CLOSE = {"rtol": 2e-5, "atol": 1e-5}
BOTH = pytest.mark.parametrize("kind", ["mha", "gqa"])


def built(kind, *shapes, **options):
    layer = (
        MultiHeadAttention(N, H, **options)
        if kind == "mha"
        else GroupQueryAttention(H, 2 * N, N, **options)
    )
    layer.build(*shapes)
    randomize(layer)
    return layer


def check(layer, inputs, masks=(), call_options=None, **expected):
    """Output and scores of both kernels against the reference."""
    wanted, wanted_scores = attention_layer(weights_of(layer), *inputs, **expected)
    call_options = call_options or {}
    output, scores = call(layer, inputs, masks, return_attention_scores=True, **call_options)
    alone = call(layer, inputs, masks, **call_options)
    for found in (output, alone):
        np.testing.assert_allclose(to_numpy(found), wanted, **CLOSE)
    np.testing.assert_allclose(to_numpy(scores), wanted_scores, **CLOSE)


def padding(length, *lengths):
    return np.arange(length) < np.array(lengths)[:, None]


def test_value_dim_other_than_key_dim():
    shapes = [(B, T, D), (B, S, DV), (B, S, DK)]
    check(built("mha", *shapes, value_dim=HV), random_inputs(*shapes))


@BOTH
def test_explicit_query_mask_is_honoured(kind):
    shapes = [(B, T, D), (B, S, DV)]
    mask = padding(T, 5, 2, 4)
    check(
        built(kind, *shapes),
        random_inputs(*shapes),
        call_options={"query_mask": mask},
        query_mask=mask,
    )


@BOTH
def test_explicit_and_attached_masks_are_combined(kind):
    shapes = [(B, T, D), (B, S, DV), (B, S, DK)]
    attached = [padding(T, 5, 4, 3), padding(S, 7, 3, 6), padding(S, 5, 7, 7)]
    given = [padding(T, 3, 5, 2), padding(S, 4, 7, 7), padding(S, 7, 7, 2)]
    query, value, key = (a & b for a, b in zip(attached, given, strict=True))
    check(
        built(kind, *shapes),
        random_inputs(*shapes),
        attached,
        dict(zip(("query_mask", "value_mask", "key_mask"), given, strict=True)),
        query_mask=query,
        key_mask=value & key,
    )


@BOTH
def test_masks_of_the_caller_stay_and_nothing_warns(kind):
    layer = built(kind, (B, T, D))
    x = tensor(random_inputs((B, T, D))[0])
    mask = tensor(padding(T, 5, 2, 4))
    set_keras_mask(x, mask)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for inputs in ((x,), (x, x), (x, x, x)):
            output = layer(*inputs)
            assert get_keras_mask(x) is mask
            carried = get_keras_mask(output)
            np.testing.assert_array_equal(to_numpy(carried), to_numpy(mask))


@BOTH
@pytest.mark.parametrize("scores", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_fully_masked_rows_give_the_bias_on_every_path(kind, scores, dropout):
    shapes = [(B, T, D), (B, S, DV)]
    layer = built(kind, *shapes, dropout=dropout)
    mask = np.random.default_rng(2).random((B, T, S)) < 0.6
    mask[0] = mask[1, 3] = False
    mask[2, :, 0] = True
    output = call(
        layer, random_inputs(*shapes), attention_mask=mask, return_attention_scores=scores
    )
    output = to_numpy(output[0] if scores else output)
    bias = to_numpy(layer.projection("output").bias)
    np.testing.assert_array_equal(output[0], np.broadcast_to(bias, (T, D)))
    np.testing.assert_array_equal(output[1, 3], bias)
    assert np.abs(output[2] - bias).min() > 0


def test_padded_queries_do_not_see_the_future():
    layer = built("mha", (B, T, D))
    (x,) = random_inputs((B, T, D))
    mask = padding(T, 5, 2, 4)
    before = to_numpy(call(layer, [x], [mask], use_causal_mask=True))
    x[:, -1] += 100.0
    after = to_numpy(call(layer, [x], [mask], use_causal_mask=True))
    np.testing.assert_array_equal(before[:, :-1], after[:, :-1])


@pytest.mark.parametrize("batch", [B, N])
def test_mask_of_heads_with_a_padding_mask(batch):
    shapes = [(batch, T, D), (batch, S, DV)]
    mask = np.random.default_rng(4).random((batch, N, T, S)) < 0.6
    keys = padding(S, *(7, 3, 1)[:batch])
    check(
        built("mha", *shapes),
        random_inputs(*shapes),
        [None, keys],
        {"attention_mask": mask},
        mask=mask,
        key_mask=keys,
    )


@pytest.mark.parametrize(
    ("axes", "shape"),
    [((2,), (B, 2, T, D)), ((1,), (B, T, 2, D)), ((1, 2), (B, 3, T, D)), ((1, 3), (B, T, 2, 3, D))],
)
@pytest.mark.parametrize("window", [None, 3])
def test_causal_masks_and_windows_over_the_attended_axes(axes, shape, window):
    layer = built("mha", shape, attention_axes=axes, sliding_window=window)
    check(
        layer,
        random_inputs(shape),
        call_options={"use_causal_mask": True},
        axes=axes,
        causal=True,
        window=window,
    )


@pytest.mark.parametrize(
    ("axes", "query", "value"),
    [
        (None, (B, T, D), (B, S, DV)),
        (None, (B, T, 2, D), (B, S, 3, DV)),
        ((2,), (B, 2, T, D), (B, 2, S, DV)),
    ],
)
def test_symbolic_scores_have_the_shape_of_the_real_ones(axes, query, value):
    layer = MultiHeadAttention(N, H, attention_axes=axes)
    symbolic = layer(
        *[keras.KerasTensor((None, *shape[1:])) for shape in (query, value)],
        return_attention_scores=True,
    )
    real = call(layer, random_inputs(query, value), return_attention_scores=True)
    assert [x.shape[1:] for x in symbolic] == [tuple(x.shape[1:]) for x in real]


def test_dropout_costs_nothing_at_inference(monkeypatch):
    """With and without a rate the same kernel is selected, and no random number is drawn."""
    import kerasattention.layers.attending as base

    seen = []
    original = base.attend

    def spy(*args, **options):
        seen.append((options["rate"], options["seed"]))
        return original(*args, **options)

    monkeypatch.setattr(base, "attend", spy)
    layer = built("mha", (B, T, D), dropout=0.5)
    state = to_numpy(layer.non_trainable_variables[0].value)
    call(layer, random_inputs((B, T, D)), training=False)
    assert seen == [(0.0, None)]
    np.testing.assert_array_equal(to_numpy(layer.non_trainable_variables[0].value), state)


@BOTH
def test_large_inputs_in_float16(kind):
    """q @ k reaches 1e6 before scaling: finite, and what float64 says."""
    layer = built(kind, (B, T, D), dtype="float16", use_bias=False)
    for weight in layer.trainable_weights:
        if "attention_output" not in weight.path:
            weight.assign(weight * 20.0)
    (x,) = random_inputs((B, T, D))
    x = np.float16(x * 10)
    wanted, _ = attention_layer(weights_of(layer), x)
    found = to_numpy(call(layer, [x]))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, wanted, rtol=0.05, atol=0.02 * np.abs(wanted).max())


@pytest.mark.parametrize("value", [True, False, None])
@BOTH
def test_flash_attention_survives_the_config(kind, value):
    layer = built(kind, (B, T, D), flash_attention=value)
    again = type(layer).from_config(layer.get_config())
    assert layer.get_config()["flash_attention"] is value
    assert again.flash_attention is value


@BOTH
def test_activity_regularizer_counts_each_projection_once(kind):
    """Four projections, and nothing for the layer's own output."""
    rate = 0.01
    layer = built(kind, (B, T, D), activity_regularizer=keras.regularizers.L2(rate))
    inputs = random_inputs((B, T, D))
    call(layer, inputs)
    weights = weights_of(layer)
    total = 0.0
    for name in ("query", "key", "value"):
        heads = np.tensordot(inputs[0], weights[f"{name}/kernel"], 1) + weights[f"{name}/bias"]
        total += (heads**2).sum()
    total += (to_numpy(call(layer, inputs)) ** 2).sum()
    # Keras divides activity losses by the batch size.
    call(layer, inputs)
    found = sum(float(to_numpy(loss)) for loss in layer.losses)
    np.testing.assert_allclose(found, rate * total / B, rtol=1e-4)


def test_functional_cross_attention_of_unequal_features():
    shapes = [(B, T, D), (B, S, DV), (B, S, DK)]
    inputs = [keras.Input(shape[1:]) for shape in shapes]
    layer = GroupQueryAttention(H, 2 * N, N)
    model = keras.Model(inputs, layer(*inputs))
    randomize(layer)
    arrays = random_inputs(*shapes)
    wanted, _ = attention_layer(weights_of(layer), *arrays)
    np.testing.assert_allclose(model.predict(arrays, verbose=0), wanted, **CLOSE)


@pytest.mark.parametrize("value", [0, -4, True, 2.0, "4", None])
@pytest.mark.parametrize("name", ["head_dim", "num_query_heads", "num_key_value_heads"])
def test_sizes_are_positive_integers(name, value):
    sizes = {"head_dim": 8, "num_query_heads": 4, "num_key_value_heads": 2}
    with pytest.raises(ValueError, match=f"`{name}` must be a positive.*{value!r}"):
        GroupQueryAttention(**sizes | {name: value})


def test_a_seeded_initializer_gives_each_kernel_its_own_values():
    found = []
    for _ in range(2):
        seeded = keras.initializers.RandomUniform(seed=7)
        layer = MultiHeadAttention(
            N, H, kernel_initializer=seeded, bias_initializer=seeded, use_gate=True
        )
        layer.build((B, T, D))
        found.append({name: x.ravel()[: N * H] for name, x in weights_of(layer).items()})
    first, second = found
    for name, values in first.items():
        np.testing.assert_array_equal(values, second[name])
        for other in first.keys() - {name}:
            count = min(len(values), len(first[other]))
            assert np.abs(values[:count] - first[other][:count]).max() > 0.01, (name, other)
    assert layer.get_config()["kernel_initializer"]["config"]["seed"] == 7


def test_batch_of_one_is_not_spread():
    with pytest.raises(ValueError, match=r"batch axes.*\(1, 7, 13\)"):
        call(built("mha", (B, T, D), (B, S, DV)), random_inputs((B, T, D), (1, S, DV)))


def test_other_features_than_built_for_are_refused():
    with pytest.raises(ValueError, match=r"built for.*\(11, 11, 11\).*query \(2, 5, 8\)"):
        call(built("mha", (B, T, D)), random_inputs((2, T, 8)))


def test_value_and_key_of_unequal_lengths_are_refused():
    layer = GroupQueryAttention(H, N, N)
    with pytest.raises(ValueError, match=r"`value` and `key`.*\(3, 7, 13\).*\(3, 5, 13\)"):
        call(layer, random_inputs((B, T, D), (B, S, DV), (B, T, DV)))


@BOTH
def test_masks_of_numbers_mean_what_booleans_mean(kind):
    """1 attends and so does any number but 0, whether scores are asked for or not."""
    shapes = [(B, T, D), (B, S, DV)]
    mask = np.random.default_rng(2).random((B, T, S)) < 0.6
    layer, inputs = built(kind, *shapes), random_inputs(*shapes)
    for numbers in (mask.astype("int32"), mask * np.float32(0.5), mask * np.float32(-3)):
        check(layer, inputs, call_options={"attention_mask": numbers}, mask=mask[:, None])


def test_batch_axis_is_not_attended():
    with pytest.raises(ValueError, match=r"0 is the batch axis.*attention_axes=\(0,\)"):
        MultiHeadAttention(N, H, attention_axes=0).build((B, T, D))
