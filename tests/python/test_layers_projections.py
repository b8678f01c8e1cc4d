"""The projections that a layer makes, by name, and their initializers."""

import functools

import keras
import numpy as np
import pytest

import kerasattention
import option_checks
from backends import predicted, tensor, to_numpy
from classifiers import classifier
from kerasattention import GroupQueryAttention, MultiHeadAttention
from kerasattention.layers.projections import PROJECTIONS
from layer_reference import attention_layer

B, T, D = 2, 5, 7


def built(**options):
    layer = GroupQueryAttention(4, 6, 2, **options)
    layer.build((B, T, D))
    return layer


def test_projections_are_found_by_name():
    layer, gated = built(), built(use_gate=True)
    assert list(layer.projections()) == ["query", "key", "value", "output"]
    assert tuple(gated.projections()) == PROJECTIONS
    assert layer.projection("gate") is None
    assert gated.projection("output").name == "attention_output"
    assert all(gated.projection(name) is dense for name, dense in gated.projections().items())


def test_vectors_are_those_of_the_options():
    assert built().vectors() == {}
    vectors = built(qk_norm=True, attention_sink=True).vectors()
    assert {name: tuple(x.shape) for name, x in vectors.items()} == {
        "sink": (6,),
        "query_norm": (4,),
        "key_norm": (4,),
    }


def test_a_seeded_initializer_gives_each_kernel_other_numbers():
    seeded = keras.initializers.RandomNormal(seed=3)
    kernels = [to_numpy(x.kernel) for x in built(kernel_initializer=seeded).projections().values()]
    again = [to_numpy(x.kernel) for x in built(kernel_initializer=seeded).projections().values()]
    for kernel, same in zip(kernels, again, strict=True):
        np.testing.assert_array_equal(kernel, same)
    firsts = [kernel.ravel()[:20] for kernel in kernels]
    for i, first in enumerate(firsts):
        assert not any(np.array_equal(first, other) for other in firsts[i + 1 :])


def test_sizes_that_no_memory_holds_are_refused_before_a_kernel_is_made():
    layer = MultiHeadAttention(2, 3, output_shape=2**30)
    with pytest.raises(ValueError, match="The kernel of `attention_output` may have at most"):
        layer.build((B, T, D))
    assert layer.weights == []


def test_a_frozen_layer_makes_frozen_projections():
    layer = built(trainable=False)
    assert layer.trainable_weights == []
    assert not any(dense.trainable for dense in layer.projections().values())


# TensorFlow's `keras.ops.add()` takes a bias (N, 1) for one of channels where axis 1 has N sizes.
@pytest.mark.parametrize(
    ("head_size", "heads", "output_shape", "length"),
    [(1, 3, None, 3), (1, 5, (3, 1), 5), (2, 5, (3, 1), 3), (1, 3, None, (3, 2))],
)
def test_biases_go_to_their_heads_where_a_length_is_the_number_of_heads(
    head_size, heads, output_shape, length
):
    layer = MultiHeadAttention(
        heads,
        head_size,
        use_gate=True,
        output_shape=output_shape,
        bias_initializer=keras.initializers.RandomNormal(seed=1),
    )
    length = length if isinstance(length, tuple) else (length,)
    x = np.random.default_rng(2).normal(size=(B, *length, D)).astype("float32")
    outputs = layer(x)
    weights = {
        f"{dense.name}/{kind}": to_numpy(getattr(dense, kind)).astype("float64")
        for dense in layer.projections().values()
        for kind in ("kernel", "bias")
    }
    expected, _ = attention_layer(weights, x.astype("float64"))
    np.testing.assert_allclose(to_numpy(outputs), expected, rtol=1e-5, atol=1e-5)


def test_a_gate_of_heads_has_one_number_for_each():
    layer = MultiHeadAttention(6, 4, value_dim=3, use_gate="head")
    layer.build((B, T, D))
    assert tuple(layer.projection("gate").kernel.shape) == (D, 6, 1)
    assert tuple(layer.projection("gate").bias.shape) == (6, 1)
    assert built(use_gate="element").use_gate is True
    assert layer.get_config()["use_gate"] == "head"
    # Gates of 1/2 halve the heads, as a gate of elements does.
    x = np.random.default_rng(3).normal(size=(B, T, D)).astype("float32")
    layer.projection("gate").kernel.assign(np.zeros((D, 6, 1)))
    halved = to_numpy(layer(x))
    layer.projection("gate").bias.assign(np.full((6, 1), 100.0))
    np.testing.assert_allclose(2 * halved, to_numpy(layer(x)), rtol=1e-5, atol=1e-5)


def test_a_gate_of_heads_is_that_of_the_reference(tmp_path):
    def make(**options):
        return option_checks.grouped(use_gate="head", **options)

    option_checks.check_against_reference(make, {}, cross=True)
    option_checks.check_decoding(use_gate="head")
    option_checks.check_files(tmp_path, use_gate="head")
    option_checks.check_low_precision("mixed_bfloat16", use_gate="head")
    option_checks.check_masked_nonfinite(use_gate="head")


def test_a_gate_of_heads_is_pruned_loaded_and_adapted():
    make = functools.partial(GroupQueryAttention, 4, 6, 2, use_gate="head")
    model = classifier(make)
    pruned = kerasattention.prune_heads(model, {"attention_0": [0, 4]})
    assert tuple(pruned.get_layer("attention_0").projection("gate").kernel.shape) == (22, 4, 1)
    kernel = model.get_layer("attention_0").projection("output").kernel
    array = np.array(to_numpy(kernel.value))
    array[[0, 4]] = 0.0
    kernel.assign(array)
    tokens = np.random.default_rng(3).integers(1, 13, (5, 7))
    before = predicted(model, tokens)
    np.testing.assert_allclose(predicted(pruned, tokens), before, atol=1e-5)

    layer, rng = model.get_layer("attention_1"), np.random.default_rng(4)
    shapes = {"query": (24, 22), "key": (8, 22), "value": (8, 22), "output": (22, 24)}
    given = {n: (rng.normal(size=s), rng.normal(size=s[0])) for n, s in shapes.items()}
    gate = rng.normal(size=(6, 22)), rng.normal(size=6)
    kerasattention.load_projections(layer, **given, gate=gate)
    found = to_numpy(layer.projection("gate").kernel.value)
    np.testing.assert_allclose(found[:, :, 0], gate[0].T, rtol=1e-6)
    before = predicted(model, tokens)
    option_checks.check_int8(use_gate="head")
    kerasattention.enable_lora(model, 2, projections=("gate", "query"))
    np.testing.assert_allclose(predicted(model, tokens), before, atol=1e-5)
    merged = kerasattention.convert_attention(classifier(make), 1)
    assert tuple(merged.get_layer("attention_0").projection("gate").kernel.shape) == (22, 6, 1)


@pytest.mark.parametrize("value", [None, 1, "heads", ["head"]])
def test_gates_that_do_not_fit_are_refused(value):
    with pytest.raises(ValueError, match='`use_gate` must be True, False, "element" or "head"'):
        GroupQueryAttention(4, 6, 2, use_gate=value)


def test_padding_gets_the_axes_of_the_input_again():
    """Of the rows of images, whose columns are part of the batch."""
    layer = MultiHeadAttention(2, 3, attention_axes=1)
    layer.build((2, 3, 5, 7))
    mask = np.random.default_rng(1).random((2 * 5, 3)) < 0.5
    like = tensor(np.ones((2, 3, 5, 7)))
    found = to_numpy(layer._unfolded(tensor(mask), like))
    np.testing.assert_array_equal(found, mask.reshape(2, 5, 3).transpose(0, 2, 1))
    assert layer._unfolded(None, like) is None
