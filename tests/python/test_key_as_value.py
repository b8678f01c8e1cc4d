"""Keys that are used as values (`use_key_as_value`), against a layer with two equal projections."""

import keras
import numpy as np
import pytest

import kerasattention as ka
import option_checks as checks
from backends import predicted, tensor, to_numpy, value_and_gradients_of_layer
from option_checks import DV, B, D, H, K, N, S, T, grouped

OPTIONS = {
    "use_key_as_value": True,
    "qk_norm": {"type": "rms", "over": "width"},
    "value_norm": True,
    "position": ka.RotaryPosition(theta=50.0),
}


def test_output_and_gradients_are_those_of_the_reference():
    wanted = {"norm": {"over": "width"}, "value_norm": True, "rotary": 50.0}
    checks.check_against_reference(lambda **more: grouped(**OPTIONS, **more), wanted)


def test_a_memory_gives_what_equal_projections_give():
    """Also with NaN in tokens of the memory that no query sees."""
    rng = np.random.default_rng(3)
    inputs = {"query": rng.normal(size=(B, T, D)), "value": rng.normal(size=(B, S, DV))}
    one = grouped(**OPTIONS)
    weights = checks.with_weights(one, [x.shape for x in inputs.values()])
    two = grouped(**{**OPTIONS, "use_key_as_value": False})
    two.build(*(x.shape for x in inputs.values()))
    for variable in two.trainable_variables:
        variable.assign(weights[checks.name_of(variable).replace("value/", "key/")])
    assert two.count_params() - one.count_params() == (DV + 1) * K * H
    upstream = tensor(rng.normal(size=(B, T, D)))
    mask = np.arange(S)[None] < np.array([[S], [S - 4]])
    found = []
    for layer, poison in ((two, 0.0), (one, 0.0), (one, np.nan)):
        value = np.where(mask[..., None], inputs["value"], poison)
        given = {**inputs, "value": value}
        call = {"value_mask": tensor(mask)}
        output = layer(**{name: tensor(x) for name, x in given.items()}, **call)
        gradients = value_and_gradients_of_layer(layer, given, upstream, **call)
        found.append((to_numpy(output), gradients))
    for output, gradients in found[1:]:
        np.testing.assert_allclose(output, found[0][0], atol=1e-5)
        for name in inputs:
            np.testing.assert_allclose(gradients[name], found[0][1][name], atol=1e-5)
    for name, gradient in found[1][1].items():
        np.testing.assert_allclose(found[2][1][name], gradient, atol=1e-5, err_msg=name)


def test_decoding_and_files(tmp_path):
    checks.check_decoding(**OPTIONS)
    checks.check_files(tmp_path, **OPTIONS)
    checks.check_low_precision("bfloat16", **OPTIONS)


def test_whole_models():
    """Heads are removed and merged, factors are beside the keys."""
    options = {**OPTIONS, "qk_norm": True}
    inputs = keras.Input((T, D))
    model = keras.Model(inputs, grouped(name="attention", **options)(inputs))
    x = np.random.default_rng(1).normal(size=(B, T, D)).astype("float32")
    before = predicted(model, x)
    pruned = ka.prune_heads(model, {"attention": [0, 1]})
    left = pruned.get_layer("attention")
    assert left.use_key_as_value
    assert tuple(left.projection("key").kernel.shape) == (D, K - 1, H)
    merged = ka.convert_attention(model, num_key_value_heads=1)
    assert tuple(merged.get_layer("attention").projection("key").kernel.shape) == (D, 1, H)
    layer = model.get_layer("attention")
    assert layer.projection("value") is None
    ka.enable_lora(model, 2)
    enabled = {name for name, dense in layer.projections().items() if dense.lora_enabled}
    assert enabled == {"query", "key"}
    np.testing.assert_allclose(predicted(model, x), before, atol=1e-5)


def test_a_checkpoint_has_no_matrix_of_values():
    rng = np.random.default_rng(2)
    layer = grouped(use_key_as_value=True, use_bias=False)
    layer.build((B, T, D))
    query, key, output = (rng.normal(size=x) for x in ((N * H, D), (K * H, D), (D, N * H)))
    ka.load_projections(layer, query, key, None, output)
    np.testing.assert_allclose(
        to_numpy(layer.projection("key").kernel), key.T.reshape(D, K, H), rtol=1e-6
    )
    with pytest.raises(ValueError, match=r"`value` must be `None`: .* uses its keys as values"):
        ka.load_projections(layer, query, key, key, output)


def test_what_does_not_go_together_is_refused():
    with pytest.raises(ValueError, match=r"`value_dim` must be None or .* value_dim=3, key_dim=4"):
        ka.MultiHeadAttention(2, 4, value_dim=3, use_key_as_value=True)
    with pytest.raises(ValueError, match=r"`use_key_as_value` is an option of the layer that comp"):
        grouped(use_key_as_value=True, key_value_of=grouped(name="first"))
    with pytest.raises(ValueError, match=r"`use_key_as_value` is no option of `LatentAttention`"):
        ka.LatentAttention(3, 5, 7, rotary_dim=4, use_key_as_value=True)
    x, y = (tensor(np.ones((B, S, D))) for _ in range(2))
    with pytest.raises(ValueError, match=r"`key` must be left out: .* uses the keys of `value`"):
        grouped(use_key_as_value=True)(x, x, y)
