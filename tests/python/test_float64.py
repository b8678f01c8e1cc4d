"""float64 is float64 all through: output, scores and gradients to 1e-12 of the reference."""

import contextlib

import keras
import numpy as np
import pytest
from keras import ops

import position_reference
import reference
from backends import BACKEND, double, sampled, tensor, to_numpy
from kerasattention import AlibiPosition, GroupQueryAttention, RelativePosition, RotaryPosition
from kerasattention.attend.mask import AttentionMask
from kerasattention.attend.tensors import Span
from kerasattention.layers.projections import in_one_dtype
from kerasattention.positions.buckets import BucketBias
from problems import PROBLEMS, SMALL_BLOCK, block_size, problem

pytestmark = pytest.mark.usefixtures("doubles")

EXACT = {"rtol": 1e-12, "atol": 1e-12}

# Every option, each with every other somewhere; all of them for every kernel.
NAMES = [
    "nothing hidden",
    "one key/value head",
    "window, more queries than keys",
    "positions of each sample",
    "padded queries and keys, causal",
    "mask (B, N, T, S)",
    "bias of minus infinity",
    "bias of heads, window",
    "sink, empty rows",
    "cap, bias, causal",
    "all at once",
]
# Those that torch's kernels take, and none of the reasons to refuse.
FUSED = [
    "nothing hidden",
    "window, more queries than keys",
    "padded keys, causal",
    "mask with empty rows",
    "mask (B, N, T, S), padding, causal",
    "sink, empty rows",
    "segments, causal",
]
KERNELS = [(name, implementation) for name in NAMES for implementation in ("plain", "blocked")]
# The last with both kernels, the others by turns.
KERNELS = sampled(KERNELS, [*KERNELS[:-2:4], *KERNELS[3:-2:4], *KERNELS[-2:]])
KERNELS += [(name, "fused") for name in FUSED if BACKEND == "torch"]


def gradients_of(function, inputs, upstream):
    """The results of the function and the gradients of sum(first * upstream), never rounded."""

    def loss(values):
        outputs = function(**values)
        return ops.sum(outputs[0] * upstream), outputs

    if BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(inputs)
            result, outputs = loss(inputs)
        return outputs, tape.gradient(result, inputs)
    if BACKEND == "jax":
        import jax

        (_, outputs), found = jax.jit(jax.value_and_grad(loss, has_aux=True))(inputs)
        return outputs, found
    import torch

    inputs = {name: x.clone().requires_grad_(True) for name, x in inputs.items()}
    result, outputs = loss(inputs)
    found = torch.autograd.grad(result, list(inputs.values()))
    return [x.detach() for x in outputs], dict(zip(inputs, found, strict=True))


@pytest.mark.parametrize(("name", "implementation"), KERNELS)
def test_kernels(name, implementation):
    given = PROBLEMS[name]
    inputs = {name: double(x) for name, x in given.trainable().items()}
    fixed = {"bias": inputs.pop("bias")} if implementation == "fused" and "bias" in inputs else {}
    with_scores = implementation == "plain"

    def attend(**values):
        found = given.attend(
            **values, **fixed, implementation=implementation, return_scores=with_scores
        )
        return found if with_scores else (found,)

    with block_size(SMALL_BLOCK) if implementation == "blocked" else contextlib.nullcontext():
        (output, *scores), gradients = gradients_of(attend, inputs, double(given.upstream))
    assert keras.backend.standardize_dtype(output.dtype) == "float64"
    np.testing.assert_allclose(to_numpy(output), given.expected[0], **EXACT)
    for weights in scores:
        np.testing.assert_allclose(to_numpy(weights), given.expected[1], **EXACT)
    for name, gradient in gradients.items():
        expected = given.expected_gradients[name]
        np.testing.assert_allclose(to_numpy(gradient), expected, **EXACT, err_msg=f"d {name}")


@pytest.mark.skipif(BACKEND != "torch", reason="the kernel that reads a mask is torch's")
@pytest.mark.parametrize("bias", [False, True])
def test_masks_and_biases_that_the_kernel_of_the_cpu_reads(bias):
    """They were float32, and read as float64: errors of 2 in outputs of 2."""
    rng = np.random.default_rng(0)
    for sizes in ({"T": 4, "S": 5}, {"T": 3, "S": 23}, {"T": 61, "S": 61}):
        shape = (2, 15, sizes["T"], sizes["S"])
        options = {"bias": rng.normal(size=shape)} if bias else {}
        given = problem(**sizes, **options, mask_fields={"mask": rng.random(shape) < 0.5})
        values = {name: double(x) for name, x in given.trainable().items()}
        output = given.attend(**values, implementation="fused")
        np.testing.assert_allclose(to_numpy(output), given.expected[0], **EXACT)


# Layers --------------------------------------------------------------------------------


def layer_and_input(**options):
    keras.utils.set_random_seed(3)
    layer = GroupQueryAttention(8, 6, 2, dtype="float64", **options)
    x = np.random.default_rng(11).normal(size=(2, 13, 7))
    layer.build(x.shape)
    for weight in layer.trainable_weights:
        rng = np.random.default_rng(sum(map(ord, weight.name)))
        weight.assign(double(rng.normal(size=tuple(weight.shape))))
    return layer, x


def heads_of(layer, x):
    weights = [
        [np.asarray(to_numpy(w.value)) for w in layer.projection(name).weights]
        for name in ("query", "key", "value")
    ]
    return [np.einsum("btd,dnh->btnh", x, kernel) + bias for kernel, bias in weights]


def project_back(layer, heads):
    kernel, bias = (to_numpy(w.value) for w in layer.projection("output").weights)
    return np.einsum("btnh,nhd->btd", heads, kernel) + bias


def test_layer_with_rotary_positions_and_a_cap():
    layer, x = layer_and_input(position=RotaryPosition(), logit_soft_cap=3.0)
    query, key, value = heads_of(layer, x)
    angles = position_reference.frequencies(10000.0, 8)
    turned = [position_reference.rotate(x, np.arange(13), angles, "half") for x in (query, key)]
    heads, _ = reference.attention(*turned, value, cap=3.0)
    np.testing.assert_allclose(to_numpy(layer(double(x))), project_back(layer, heads), **EXACT)


@pytest.mark.parametrize("flash", [False, None])
def test_layer_with_alibi_and_a_sink(flash):
    layer, x = layer_and_input(position=AlibiPosition(), attention_sink=True, flash_attention=flash)
    heads, _ = reference.attention(
        *heads_of(layer, x),
        bias=position_reference.alibi(6, range(13), range(13))[None],
        sink=to_numpy(layer.sink.value),
        seen=np.broadcast_to(np.tri(13, dtype=bool), (2, 6, 13, 13)),
    )
    output = layer(double(x), use_causal_mask=True)
    np.testing.assert_allclose(to_numpy(output), project_back(layer, heads), **EXACT)


def test_layer_with_relative_positions():
    layer, x = layer_and_input(position=RelativePosition(8, 16, dtype="float64"))
    table = to_numpy(layer.position.table.value)
    buckets = position_reference.bucket_matrix(range(13), range(13), 8, 16, causal=False)
    bias = np.moveaxis(table[buckets], -1, 0)[None]
    heads, weights = reference.attention(*heads_of(layer, x), bias=bias)
    output, scores = layer(double(x), return_attention_scores=True)
    np.testing.assert_allclose(to_numpy(scores), weights, **EXACT)
    np.testing.assert_allclose(to_numpy(output), project_back(layer, heads), **EXACT)


def test_gradient_of_a_table_of_relative_positions():
    """Keras's sums by segment are float32's on torch: errors of 1e-6."""
    bias = BucketBias(double(np.zeros((4, 3))), (0, 1, 1, 2, 3, 3, 2))
    gradient = np.random.default_rng(5).normal(size=(2, 3, 13, 17))
    buckets = np.array(bias.buckets)[np.clip(np.arange(17) - np.arange(13)[:, None], -3, 3) + 3]
    expected = [[gradient[:, n][:, buckets == i].sum() for n in range(3)] for i in range(4)]
    for positions in (None, tensor(np.arange(13))):
        mask = AttentionMask(query_positions=positions)
        found = bias.block_gradient(double(gradient), mask, Span(0, 13), Span(0, 17))
        np.testing.assert_allclose(to_numpy(found["table"]), expected, **EXACT)


def test_normalised_queries_and_keys():
    """The output, and derivatives by scale and input along a direction."""
    layer, x = layer_and_input(qk_norm=True)
    direction = np.random.default_rng(12).normal(size=x.shape)
    weights = dict(zip(("query_norm", "key_norm"), _scales(layer), strict=True))

    def expected(x, weights):
        query, key, value = heads_of(layer, x)
        scales = weights.values()
        query, key = (_normal(x) * scale for x, scale in zip((query, key), scales, strict=True))
        return project_back(layer, reference.attention(query, key, value)[0])

    (output,), gradients = gradients_of(lambda x: (layer(x),), {"x": double(x)}, double(direction))
    np.testing.assert_allclose(to_numpy(output), expected(x, weights), **EXACT)
    h, along = 1e-5, np.random.default_rng(13).normal(size=x.shape)
    sides = [(expected(x + sign * h * along, weights) * direction).sum() for sign in (1, -1)]
    slope = (to_numpy(gradients["x"]) * along).sum()
    np.testing.assert_allclose(slope, (sides[0] - sides[1]) / (2 * h), rtol=1e-8)


def _normal(x):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)


def _scales(layer):
    return [to_numpy(w) for name, w in layer.vectors().items() if name.endswith("norm")]


def test_policies_of_several_dtypes_keep_float64():
    """Keras's rule makes float32 of a float64 and a float32."""
    policies = keras.dtype_policies.DTypePolicyMap(default_policy="float64")
    policies["attention/query"] = keras.dtype_policies.DTypePolicy("float32")
    layer = GroupQueryAttention(8, 6, 2, dtype=policies, name="attention")
    x = double(np.random.default_rng(14).normal(size=(2, 5, 7)))
    query, key, value = (layer(x), *in_one_dtype(x, ops.cast(x, "float32")))
    assert {keras.backend.standardize_dtype(x.dtype) for x in (query, key, value)} == {"float64"}
