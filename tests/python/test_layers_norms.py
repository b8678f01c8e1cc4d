"""Norms of queries and keys: every kind against the float64 reference, and hand-worked values."""

import keras
import numpy as np
import pytest

import kerasattention as ka
import option_checks as checks
from backends import BACKEND, predicted, sampled, tensor, to_numpy
from classifiers import classifier
from kerasattention.layers.norms import HeadNorm, NormOptions, make_norm, unlearned_rms
from layer_reference import normalised
from option_checks import D, H, K, N, T, grouped

NORMS = {
    "rms": {"type": "rms", "epsilon": 0.1},
    "offset": {"type": "rms", "offset": 1.0},
    "after the position": {"type": "rms", "after_position": True},
    "layer": {"type": "layer", "epsilon": 1e-3},
    "layer, heads": {"type": "layer", "per_head": True, "bias": True},
    "l2": {"type": "l2", "after_position": True, "offset": 0.5},
    "width": {"type": "rms", "over": "width", "epsilon": 1e-2},
    "width, layer": {"type": "layer", "over": "width", "bias": True},
    "unlearned": {"type": "rms", "learned": False, "after_position": True},
}


def reference_of(norm):
    return {name: x for name, x in norm.items() if name not in ("learned", "per_head", "bias")}


@pytest.mark.parametrize(
    "name", sampled(NORMS, ["offset", "layer, heads", "l2", "width", "unlearned"])
)
def test_output_and_gradients_are_those_of_the_reference(name):
    norm = NORMS[name]

    def make(**options):
        position = ka.RotaryPosition(theta=50.0)
        return grouped(qk_norm=norm, position=position, **options)

    cross = name in ("layer", "width", "l2")
    checks.check_against_reference(make, {"norm": reference_of(norm), "rotary": 50.0}, cross)


def test_names_stand_for_dictionaries():
    for value, kept in (
        ("rms", True),
        ({"type": "rms"}, True),
        ({}, True),
        ({"offset": 0}, True),
        ({"type": "l2"}, "l2"),
        ("layer", "layer"),
        ({"over": "width", "epsilon": 1e-6}, {"type": "rms", "over": "width"}),
        ({"type": "layer", "bias": True}, {"type": "layer", "bias": True}),
    ):
        assert grouped(qk_norm=value).qk_norm == kept
        entry = grouped(qk_norm=kept).get_config()["qk_norm"]
        assert entry == kept
        assert type(entry) is type(kept)
    assert "qk_norm" not in grouped(qk_norm=False).get_config()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "`qk_norm` must be True, False, one of"),
        (1, "`qk_norm` must be True"),
        ("rsm", '`type` of `qk_norm` must be one of "rms"'),
        ({"kind": "rms"}, r"`qk_norm` takes .*'type'.*Received: 'kind'"),
        ({"over": "heads"}, '`over` of `qk_norm` must be "head" or "width"'),
        ({"epsilon": 0}, "`epsilon` of `qk_norm` must be a number of at least 1e-30"),
        ({"epsilon": float("nan")}, "`epsilon` of `qk_norm` must be a number"),
        ({"epsilon": None}, "`epsilon` of `qk_norm` must be a number"),
        ({"offset": float("inf")}, "`offset` of `qk_norm` must be a number"),
        ({"after_position": 1}, "`after_position` of `qk_norm` must be True or False"),
        ({"bias": True}, '`bias` of `qk_norm` is for the type "layer"'),
        ({"learned": False, "offset": 1}, "`learned=False` leaves out"),
    ],
)
def test_values_that_do_not_fit_are_refused(value, message):
    with pytest.raises(ValueError, match=message):
        grouped(qk_norm=value)


def test_values_worked_by_hand():
    """(3, 4): its mean square is 12.5, its norm 5; less their mean the numbers are -1/2, 1/2."""
    x = tensor(np.array([[[[3.0, 4.0]]]]))
    root = np.sqrt(12.5)
    for options, expected in (
        (NormOptions("l2"), (0.6, 0.8)),
        (NormOptions("layer"), (-1.0, 1.0)),
        (NormOptions("rms", learned=False), (3 / root, 4 / root)),
        (NormOptions("rms", offset=1.0), (3 / root, 4 / root)),  # a new scale is 1 as well
    ):
        norm = HeadNorm(options, 1, 2)
        np.testing.assert_allclose(to_numpy(norm(x))[0, 0, 0], expected, rtol=1e-5)
    # Two heads as one vector (3, 4, 0, 0): its mean square is 6.25.
    pair = tensor(np.array([[[[3.0, 4.0], [0.0, 0.0]]]]))
    wide = HeadNorm(NormOptions("rms", over="width"), 2, 2)
    np.testing.assert_allclose(to_numpy(wide(pair))[0, 0, 0], (1.2, 1.6), rtol=1e-5)
    assert tuple(wide.scale.shape) == (2, 2)


def test_the_weights_of_a_norm():
    """Their names and order are those of files, and making them twice makes no others."""
    for options, shapes in (
        (NormOptions("layer", per_head=True, bias=True), {"scale": (3, 2), "bias": (3, 2)}),
        (NormOptions("layer", bias=True), {"scale": (2,), "bias": (2,)}),
        (NormOptions("l2", offset=0.25), {"scale": (2,)}),
        (NormOptions("rms", learned=False), {}),
    ):
        norm = HeadNorm(options, 3, 2, dtype="bfloat16")
        assert norm.built
        norm.build((5, 7, 3, 2))
        assert {w.name: tuple(w.shape) for w in norm.weights} == shapes
        assert norm.compute_output_shape((5, 7, 3, 2)) == (5, 7, 3, 2)
        assert norm.supports_masking
        for weight in norm.weights:
            expected = 1.0 - options.offset if weight.name == "scale" else 0.0
            np.testing.assert_array_equal(to_numpy(weight.value), np.full(weight.shape, expected))
            # Keras does not round it to the layer's dtype in a call.
            assert not weight._autocast


def test_a_scale_of_each_head_begins_at_one():
    for norm in NORMS.values():
        layer = grouped(qk_norm=norm)
        layer.build((2, T, D))
        plain = grouped(qk_norm={**reference_of(norm), "learned": False} | {"offset": 0})
        plain.build((2, T, D))
        for weight, value in zip(
            [w for w in layer.weights if "norm" not in w.path], plain.get_weights(), strict=True
        ):
            weight.assign(value)
        x = tensor(np.random.default_rng(1).normal(size=(2, T, D)))
        np.testing.assert_allclose(to_numpy(layer(x)), to_numpy(plain(x)), atol=1e-6)


def test_the_plain_norm_is_keras_own_layer():
    """The weights and the path of computation that earlier versions have."""
    made = make_norm(NormOptions(epsilon=1e-5, after_position=True), 3, 4, "norm", "float32")
    assert type(made) is keras.layers.RMSNormalization
    assert made.epsilon == 1e-5
    assert type(make_norm(NormOptions(offset=1.0), 3, 4, "norm", "float32")) is HeadNorm


@pytest.mark.parametrize("dtype", ["bfloat16", "mixed_float16"])
@pytest.mark.parametrize("name", sampled(NORMS, ["width, layer"]))
def test_low_precision(name, dtype):
    checks.check_low_precision(dtype, qk_norm=NORMS[name])


def test_large_numbers_of_float16_do_not_overflow():
    x = np.random.default_rng(2).normal(size=(2, T, N, H)) * 3e4
    for type_ in ("rms", "layer", "l2"):
        norm = HeadNorm(NormOptions(type_), N, H, dtype="float16")
        found = to_numpy(norm(tensor(x.clip(-6e4, 6e4), "float16")))
        expected = normalised(x.clip(-6e4, 6e4), type=type_)
        np.testing.assert_allclose(found, expected, atol=4e-3)


@pytest.mark.parametrize("name", sampled(NORMS, ["l2", "width"]))
def test_decoding(name):
    checks.check_decoding(qk_norm=NORMS[name], position=ka.RotaryPosition(theta=50.0))


@pytest.mark.parametrize("name", ["width", "l2"])
def test_decoding_of_cross_attention(name):
    checks.check_cross_decoding(
        qk_norm=NORMS[name], value_norm=True, position=ka.RotaryPosition(theta=50.0)
    )


@pytest.mark.parametrize("kind", ["functional", "sequential"])
@pytest.mark.parametrize("name", sampled(NORMS, ["layer, heads"]))
def test_files(name, kind, tmp_path):
    checks.check_files(tmp_path, kind, qk_norm=NORMS[name])


@pytest.mark.parametrize("name", ["layer, heads", "l2", "width"])
def test_masked_out_nan_reaches_no_gradient(name):
    checks.check_masked_nonfinite(qk_norm=NORMS[name], position=ka.RotaryPosition())


# Values ---------------------------------------------------------------------------------------


def test_the_norm_of_values(tmp_path):
    def make(**options):
        return grouped(value_norm=True, qk_norm=True, use_gate=True, **options)

    wanted = {"value_norm": True, "norm": {}}
    for cross in sampled((True, False), 2):
        checks.check_against_reference(make, wanted, cross=cross)
    checks.check_decoding(value_norm=True)
    checks.check_files(tmp_path, value_norm=True)
    checks.check_low_precision("bfloat16", value_norm=True)
    checks.check_masked_nonfinite(value_norm=True)
    layer = ka.MultiHeadAttention(3, 4, value_dim=2, value_norm=True, use_bias=False)
    layer.build((2, T, D))
    # One token attends itself: (3, 4) becomes (3, 4) / sqrt(12.5), by hand.
    kernel = np.zeros((D, 3, 2))
    kernel[0] = [3.0, 4.0]
    layer.projection("value").kernel.assign(kernel)
    output = np.zeros((3, 2, D))
    output[1] = [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0]]
    layer.projection("output").kernel.assign(output)
    found = to_numpy(layer(tensor(np.eye(D)[None, :1])))[0, 0]
    np.testing.assert_allclose(found, np.array([3, 4, 0, 0, 0]) / np.sqrt(12.5), rtol=1e-6)


# Whole models ---------------------------------------------------------------------------------


def gqa(qk_norm):
    return lambda name: ka.GroupQueryAttention(4, 6, 2, name=name, qk_norm=qk_norm)


def drawn_model(qk_norm):
    model = classifier(gqa(qk_norm))
    rng = np.random.default_rng(3)
    for variable in model.trainable_variables:
        if "attention" in variable.path:
            variable.assign(checks.drawn(rng, variable))
    return model


def test_pruning_takes_the_scales_of_the_heads_that_stay():
    model = drawn_model(NORMS["layer, heads"])
    removed = {"attention_0": [0, 4], "attention_1": [3, 4, 5]}
    pruned = ka.prune_heads(model, removed)
    assert tuple(pruned.get_layer("attention_0").vectors()["query_norm"].shape) == (4, 4)
    assert tuple(pruned.get_layer("attention_1").vectors()["key_norm_bias"].shape) == (1, 4)
    tokens = np.random.default_rng(3).integers(1, 13, (5, 7))
    for name, heads in removed.items():
        kernel = model.get_layer(name).projection("output").kernel
        array = np.array(to_numpy(kernel.value))
        array[heads] = 0.0
        kernel.assign(array)
    np.testing.assert_allclose(predicted(pruned, tokens), predicted(model, tokens), atol=1e-5)


def test_heads_of_a_norm_over_the_width_stay():
    model = drawn_model(NORMS["width"])
    with pytest.raises(ValueError, match=r"'attention_0'.*over the \"width\".*other results"):
        ka.prune_heads(model, {"attention_0": [0, 4]})


@pytest.mark.parametrize("name", ["layer, heads", "width"])
def test_merging_equal_heads_changes_nothing(name):
    """Keys, values and the norm's numbers twice over: their means are they."""
    norm = NORMS[name]
    model = classifier(lambda name: ka.GroupQueryAttention(4, 8, 4, name=name, qk_norm=norm))
    rng = np.random.default_rng(3)
    for layer in (model.get_layer(f"attention_{i}") for i in range(2)):
        for variable in layer.trainable_variables:
            array = checks.drawn(rng, variable)
            owner = variable.path.split("/")[-2]
            if owner in ("key", "value", "key_norm"):
                array = np.repeat(array[..., ::2, :], 2, axis=-2)
            variable.assign(array)
    merged = ka.convert_attention(model, 2)
    tokens = np.random.default_rng(3).integers(1, 13, (5, 7))
    np.testing.assert_allclose(predicted(merged, tokens), predicted(model, tokens), atol=1e-5)


def test_checkpoints_lora_and_int8():
    layer = grouped(qk_norm=NORMS["width, layer"], use_bias=False)
    layer.build((2, T, D))
    rng = np.random.default_rng(7)
    matrices = {
        "query": rng.normal(size=(N * H, D)),
        "key": rng.normal(size=(K * H, D)),
        "value": rng.normal(size=(K * H, D)),
        "output": rng.normal(size=(D, N * H)),
    }
    norms = {
        "query_norm": (rng.normal(size=N * H), rng.normal(size=N * H)),
        "key_norm": (rng.normal(size=(K, H)), rng.normal(size=K * H)),
    }
    with pytest.raises(ValueError, match=r"`query_norm_bias` is missing.*`bias` of `qk_norm`"):
        ka.load_projections(layer, **matrices, **(norms | {"query_norm": norms["query_norm"][0]}))
    ka.load_projections(layer, **matrices, **norms)
    found = {name: to_numpy(x) for name, x in layer.vectors().items()}
    for name, (scale, bias) in norms.items():
        np.testing.assert_allclose(found[name].ravel(), scale.ravel(), rtol=1e-6)
        np.testing.assert_allclose(found[f"{name}_bias"].ravel(), bias.ravel(), rtol=1e-6)

    checks.check_int8(qk_norm=NORMS["layer, heads"])
    model = drawn_model(NORMS["layer, heads"])
    ka.enable_lora(model, 2)
    assert not any("norm" in w.path for w in model.trainable_weights)


if BACKEND == "torch":

    def test_norms_are_those_of_transformers():
        """OLMo 2's over the width, Cohere's with a scale of each head, Gemma's offset of 1."""
        torch = pytest.importorskip("torch")
        transformers = pytest.importorskip("transformers")
        assert transformers
        from transformers.models.cohere.modeling_cohere import CohereLayerNorm
        from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
        from transformers.models.gemma4.modeling_gemma4 import Gemma4RMSNorm
        from transformers.models.llama4.modeling_llama4 import Llama4TextL2Norm
        from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm

        x = torch.randn(2, T, N, H)
        values = Gemma4RMSNorm(H, 1e-6, with_scale=False)(x)
        np.testing.assert_allclose(to_numpy(unlearned_rms(x)), values.numpy(), rtol=1e-5)
        per_head = {"type": "layer", "per_head": True, "epsilon": 1e-5}
        unlearned = {"learned": False, "epsilon": 1e-5}
        for norm, theirs, flat in (
            ({"over": "width", "epsilon": 1e-5}, Olmo2RMSNorm(N * H, 1e-5), True),
            (per_head, CohereLayerNorm((N, H), 1e-5), False),
            ({"offset": 1.0}, Gemma3RMSNorm(H, 1e-6), False),
            (unlearned, Llama4TextL2Norm(1e-5), False),
        ):
            for parameter in theirs.parameters():
                torch.nn.init.normal_(parameter)
            ours = HeadNorm(NormOptions(**norm), N, H)
            if ours.scale is not None:
                ours.scale.assign(theirs.weight.detach().reshape(tuple(ours.scale.shape)))
            expected = theirs(x.flatten(2) if flat else x).reshape(x.shape)
            np.testing.assert_allclose(
                to_numpy(ours(x)), expected.detach().numpy(), rtol=1e-5, atol=1e-6
            )
