"""Checks of one option of the layers: outputs, gradients, decoding and files.

The float64 reference is `layer_reference.attention_layer`; gradients are held against central
differences of it, along one random direction for each input and weight.
"""

import keras
import numpy as np
import pytest

import kerasattention as ka
import layer_reference
from backends import predicted, tensor, to_numpy, value_and_gradients_of_layer

B, T, S, D, DV, H, N, K = 2, 7, 11, 5, 3, 4, 6, 3
OWN_VARIABLES = ("sink", "table", "per_dim_scale")


def grouped(**options):
    return ka.GroupQueryAttention(H, N, K, **options)


def name_of(variable):
    parts = variable.path.split("/")
    return parts[-1] if parts[-1] in OWN_VARIABLES else "/".join(parts[-2:])


def drawn(rng, variable):
    """Far from where weights start."""
    shape = tuple(variable.shape)
    if name_of(variable).endswith("scale"):
        return 0.7 + 0.3 * rng.normal(size=shape)
    return rng.normal(size=shape) / np.sqrt(shape[0])


def with_weights(layer, shapes, seed=3):
    """The layer, built, and its weights by name in float64."""
    layer.build(*shapes)
    rng = np.random.default_rng(seed)
    weights = {}
    for variable in layer.trainable_variables:
        weights[name_of(variable)] = drawn(rng, variable)
        variable.assign(weights[name_of(variable)])
    return weights


def inputs_of(cross):
    rng = np.random.default_rng(5)
    inputs = {"query": rng.normal(size=(B, T, D))}
    if cross:
        inputs |= {"value": rng.normal(size=(B, S, DV)), "key": rng.normal(size=(B, S, D))}
    return inputs


def check_against_reference(make, wanted, cross=False, positions=None):
    """Output and gradients of a layer by both kernels.

    `make(flash_attention=...)` makes a layer; `wanted` holds the options of
    `layer_reference.attention_layer` that stand for its own.
    """
    inputs = inputs_of(cross)
    upstream = np.random.default_rng(6).normal(size=(B, T, D))
    call = {"use_causal_mask": True}
    if positions is not None:
        call["positions"] = tensor(positions)
        wanted = {**wanted, "positions": positions}
    for flash in (False, True):
        layer = make(flash_attention=flash)
        weights = with_weights(layer, [x.shape for x in inputs.values()])

        def reference(moved, weights=weights):
            own = {name: moved.get(name, x) for name, x in weights.items()}
            given = {name: moved.get(name, x) for name, x in inputs.items()}
            return layer_reference.attention_layer(own, **given, causal=True, **wanted)[0]

        given = {name: tensor(x) for name, x in inputs.items()}
        found = to_numpy(layer(**given, **call))
        expected = reference({})
        np.testing.assert_allclose(found, expected, atol=2e-5 * max(1, np.abs(expected).max()))
        gradients = value_and_gradients_of_layer(layer, inputs, tensor(upstream), **call)
        gradients = {name: gradients[name] for name in gradients}
        named = [*inputs, *(name_of(v) for v in layer.trainable_variables)]
        rng = np.random.default_rng(8)
        for name, gradient in zip(named, gradients.values(), strict=True):
            x = (inputs | weights)[name]
            along = rng.normal(size=x.shape)
            sides = [
                (reference({name: x + step * along}) * upstream).sum() for step in (1e-5, -1e-5)
            ]
            slope = (sides[0] - sides[1]) / 2e-5
            assert (gradient * along).sum() == pytest.approx(slope, rel=2e-4, abs=2e-4), name


def check_decoding(**options):
    """Steps with a cache give what full passes give, with prompts padded on the left too."""
    model = token_model(options)
    tokens = np.random.default_rng(9).integers(1, 13, (2, 9))
    full = predicted(model, tokens)
    decoder = ka.IncrementalDecoder(model, 2, 12)
    steps = [to_numpy(decoder.prefill(tokens[:, :4]))]
    steps += [to_numpy(decoder.step(tokens[:, at])) for at in range(4, 9)]
    for at, step in enumerate(steps):
        np.testing.assert_allclose(step, full[:, 3 + at], atol=1e-4)
    decoder.reset()
    first = to_numpy(decoder.prefill([list(tokens[0, :2]), list(tokens[1, :4])]))
    then = to_numpy(decoder.step(np.array([tokens[0, 2], tokens[1, 4]])))
    for found, at in ((first, (1, 3)), (then, (2, 4))):
        np.testing.assert_allclose(found, full[[0, 1], list(at)], atol=1e-4)


def check_cross_decoding(**options):
    """Steps that attend to a memory, whose keys and values the decoder keeps."""
    memory, tokens = keras.Input((S, D)), keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(13, D)(tokens)
    x = x + grouped(**options)(x, memory)
    model = keras.Model([memory, tokens], keras.layers.Dense(13)(x))
    rng = np.random.default_rng(4)
    for variable in model.trainable_variables:
        variable.assign(drawn(rng, variable))
    given = rng.normal(size=(2, S, D)).astype("float32")
    ids = rng.integers(1, 13, (2, 7))
    full = predicted(model, given, ids)
    decoder = ka.IncrementalDecoder(model, 2, 12)
    steps = [to_numpy(decoder.prefill(ids[:, :3], [given]))]
    steps += [to_numpy(decoder.step(ids[:, at])) for at in range(3, 7)]
    for at, step in enumerate(steps):
        np.testing.assert_allclose(step, full[:, 2 + at], atol=1e-4)


def token_model(options):
    tokens = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(13, D)(tokens)
    x = x + grouped(use_causal_mask=True, name="attention", **options)(x)
    model = keras.Model(tokens, keras.layers.Dense(13)(x))
    rng = np.random.default_rng(4)
    for variable in model.trainable_variables:
        variable.assign(drawn(rng, variable))
    return model


def check_files(tmp_path, kind="functional", **options):
    """The config, a `.keras` file and a weight file bring the layer back."""
    layer = grouped(name="attention", **options)
    if kind == "functional":
        inputs = keras.Input((None, D))
        model = keras.Model(inputs, layer(inputs))
    else:
        model = keras.Sequential([keras.Input((None, D)), layer])
    rng = np.random.default_rng(2)
    for variable in model.trainable_variables:
        variable.assign(drawn(rng, variable))
    x = inputs_of(cross=False)["query"].astype("float32")
    before = predicted(model, x)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(predicted(loaded, x), before, atol=1e-6)
    assert loaded.layers[-1].get_config() == layer.get_config()
    for variable in loaded.trainable_variables:
        variable.assign(np.zeros(variable.shape))
    model.save_weights(tmp_path / "model.weights.h5")
    loaded.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_allclose(predicted(loaded, x), before, atol=1e-6)
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    np.testing.assert_allclose(predicted(copy, x), before, atol=1e-6)


def check_low_precision(dtype, **options):
    """The layer in a low precision is near that in float32."""
    x = tensor(inputs_of(cross=False)["query"])
    wide, low = grouped(**options), grouped(**options, dtype=dtype)
    weights = with_weights(wide, [(B, T, D)])
    with_weights(low, [(B, T, D)])
    assert len(weights) == len(low.trainable_variables)
    expected = to_numpy(wide(x))
    found = low(keras.ops.cast(x, low.compute_dtype))
    assert keras.backend.standardize_dtype(found.dtype) == low.compute_dtype
    np.testing.assert_allclose(to_numpy(found), expected, atol=0.06 * np.abs(expected).max())


def check_masked_nonfinite(**options):
    """NaN in keys that no query sees reaches neither the output nor a gradient."""
    layer = grouped(**options)
    inputs = inputs_of(cross=True)
    with_weights(layer, [x.shape for x in inputs.values()])
    upstream = tensor(np.random.default_rng(6).normal(size=(B, T, D)))
    results = []
    for poison in (0.0, np.nan):
        changed = {name: np.array(x) for name, x in inputs.items()}
        for name in ("value", "key"):
            changed[name][:, T:] = poison
        call = {"use_causal_mask": True}
        output = to_numpy(layer(**{name: tensor(x) for name, x in changed.items()}, **call))
        gradients = value_and_gradients_of_layer(layer, changed, upstream, **call)
        results.append((output, gradients))
    (expected, gradients), (output, found) = results
    np.testing.assert_allclose(output, expected, rtol=1e-6, atol=1e-7)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(found[name], gradient, rtol=1e-5, atol=1e-6, err_msg=name)


def check_int8(**options):
    """A quantised model is near the one it was made of, and its copy the same."""
    model = keras.Sequential([keras.Input((None, D)), grouped(**options)])
    rng = np.random.default_rng(2)
    for variable in model.trainable_variables:
        variable.assign(drawn(rng, variable))
    x = inputs_of(cross=False)["query"].astype("float32")
    before = predicted(model, x)
    model.quantize("int8")
    after = predicted(model, x)
    np.testing.assert_allclose(after, before, atol=0.1 * np.abs(before).max())
    np.testing.assert_allclose(predicted(ka.convert_attention(model), x), after, atol=1e-6)
