"""The fuzzers' yardstick against the loops of `reference`, and its gradients."""

import numpy as np
import pytest

import latent_reference
import layer_reference
import reference
import tape_attention
from problems import PROBLEMS, SEED
from tape import Tape


def taped(given):
    tape = Tape()
    leaves = {name: tape.leaf(x) for name, x in given.trainable().items()}
    bias = leaves.get("bias")
    spread = [] if bias is None else [tape.reshape(bias, full_shape(bias.value.shape))]
    keep = tape_attention.kept_weights(SEED, given.shape, given.rate) if given.rate else None
    output, weights = tape_attention.attention(
        tape,
        leaves["query"],
        leaves["key"],
        leaves["value"],
        given.seen,
        scale=given.scale,
        biases=spread,
        cap=given.cap,
        sink=leaves.get("sink"),
        keep=keep,
        rate=given.rate,
    )
    tape.backward((output, given.upstream))
    return output.value, weights.value, {name: x.gradient for name, x in leaves.items()}


def test_a_complex_step_differentiates_gradients():
    """As the fuzzers do: the imaginary part is the derivative along the step."""
    rng = np.random.default_rng(3)
    arrays = [rng.normal(size=shape) for shape in ((2, 5, 4, 3), (2, 7, 2, 3), (2, 7, 2, 4))]
    arrays += [rng.normal(size=(2, 4, 5, 7)), rng.normal(size=4), 1 + rng.normal(size=3)]
    arrays[3][0, 1, 2, 3] = -np.inf
    upstream = rng.normal(size=(2, 5, 4, 4))
    directions = [rng.normal(size=x.shape) for x in arrays]
    seen = rng.random((2, 4, 5, 7)) < 0.7

    def gradients(dtype, step):
        tape = Tape(dtype=dtype)
        leaves = [tape.leaf(x + step * by) for x, by in zip(arrays, directions, strict=True)]
        query, key, value, bias, sink, scale = leaves
        query = tape.rms(query, scale)
        output, _ = tape_attention.attention(
            tape, query, key, value, seen, biases=[bias], cap=2.0, sink=sink
        )
        tape.backward((tape.multiply(output, tape.sigmoid(output)), upstream))
        return [leaf.gradient for leaf in leaves]

    found = [x.imag / 1e-30 for x in gradients(np.complex128, 1e-30j)]
    sides = [gradients(np.float64, step) for step in (1e-5, -1e-5)]
    for x, one, other in zip(found, *sides, strict=True):
        np.testing.assert_allclose(x, (one - other) / 2e-5, rtol=1e-6, atol=1e-6)


def full_shape(shape):
    return (shape[0], 1, *shape[1:]) if len(shape) == 3 else (1,) * (4 - len(shape)) + shape


@pytest.mark.parametrize("name", PROBLEMS)
def test_whole_arrays_give_what_the_loops_give(name):
    given = PROBLEMS[name]
    output, weights, gradients = taped(given)
    np.testing.assert_allclose(output, given.expected[0], rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(weights, given.expected[1], rtol=1e-11, atol=1e-12)
    for which, expected in given.expected_gradients.items():
        np.testing.assert_allclose(
            gradients[which], expected, rtol=1e-10, atol=1e-11, err_msg=which
        )


@pytest.mark.parametrize(
    "name", ["causal", "positions of each sample", "segments, causal", "all at once"]
)
def test_masks_of_whole_arrays_are_those_of_the_loops(name):
    given = PROBLEMS[name]
    options = dict(given.mask_fields)
    offset = options.pop("offset", 0)
    if offset:
        options["query_positions"] = np.arange(given.shape[2])[None] + offset
    np.testing.assert_array_equal(tape_attention.visible(given.shape, **options), given.seen)


def test_dropout_patterns_of_whole_arrays_are_those_of_the_loops():
    for rate in (0.1, 0.9):
        found = tape_attention.kept_weights(SEED, (2, 3, 5, 31), rate)
        np.testing.assert_array_equal(found, reference.kept_weights(SEED, (2, 3, 5, 31), rate))


def layer_weights(rng, D, N, H, Hv, sizes):
    shapes = {
        "query/kernel": (D, N, H),
        "query/bias": (N, H),
        "key/kernel": (D, N, H),
        "value/kernel": (D, N, Hv),
        "gate/kernel": (D, N, Hv),
        "query_norm/scale": (H,),
        "key_norm/scale": (H,),
        "attention_output/kernel": (N, Hv, *sizes),
        "attention_output/bias": sizes,
        "sink": (N,),
        "table": (8, N),
    }
    return {name: rng.normal(size=shape) for name, shape in shapes.items()}


def test_a_layer_over_axes_is_that_of_the_loops():
    """Its projections, masks of padding, gate and the folding of axes."""
    rng = np.random.default_rng(1)
    query, value = rng.normal(size=(2, 3, 5, 7)), rng.normal(size=(2, 3, 4, 7))
    weights = layer_weights(rng, 7, 3, 2, 5, (4, 2))
    for name in ("query_norm/scale", "key_norm/scale", "table"):
        weights.pop(name)
    given = {
        "mask": rng.random((2, 3, 3, 5, 4)) < 0.7,
        "bias": rng.normal(size=(2, 3, 3, 5, 4)),
        "query_mask": rng.random((2, 3, 5)) < 0.7,
        "key_mask": rng.random((2, 3, 4)) < 0.7,
        "causal": True,
    }
    expected = layer_reference.attention_layer(
        weights, query, value, axes=(2,), window=3, cap=2.0, **given
    )
    layer = tape_attention.Layer(weights, (2,), window=3, cap=2.0).with_sizes(query, value)
    output, scores, _, _ = layer(Tape(), {"query": query, "value": value}, **given)
    np.testing.assert_allclose(output.value, expected[0], rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(scores.value, expected[1], rtol=1e-10, atol=1e-11)


ROTARY = {"kind": "rotary", "fraction": 0.5, "layout": "interleaved", "theta": 100.0}
RELATIVE = {"kind": "relative", "num_buckets": 8, "max_distance": 11}


SHAW = {"kind": "relative keys", "type": "shaw", "max_distance": 3}
HUANG = SHAW | {"type": "huang"}
TRANSFORMER_XL = SHAW | {"type": "transformer_xl"}
DEBERTA = SHAW | {"type": "deberta", "num_buckets": 8, "max_distance": 13}
GRID = {"kind": "grid", "max_distance": (1, 2)}
CLASS = GRID | {"class_token": True}
RELATIVE_KEYS = {
    "key_table": {"shaw": (7, 1, 4), "huang": (7, 1, 4), "deberta": (8, 3, 4)},
    "query_table": {"deberta": (8, 3, 4)},
    "position_kernel": {"transformer_xl": (5, 3, 4)},
    "position_bias": {"transformer_xl": (3, 4)},
    "content_bias": {"transformer_xl": (3, 4)},
}


def weights_of_position(rng, position):
    kind = position.get("type")
    found = {name: shapes[kind] for name, shapes in RELATIVE_KEYS.items() if kind in shapes}
    found |= (
        {"table": (18, 3) if position is CLASS else (15, 3)} if position in (GRID, CLASS) else {}
    )
    return {name: rng.normal(size=shape) for name, shape in found.items()}


@pytest.mark.parametrize(
    "position",
    [ROTARY, RELATIVE, {"kind": "alibi"}, SHAW, HUANG, TRANSFORMER_XL, DEBERTA, GRID, CLASS],
    ids=str,
)
def test_gradients_of_a_layer_are_differences_of_its_output(position):
    """Of every input and weight, along a random direction each."""
    rng = np.random.default_rng(2)
    arrays = {"query": rng.normal(size=(2, 5, 7))}
    weights = layer_weights(rng, 7, 3, 4, 5, (7,)) | weights_of_position(rng, position)
    upstream = rng.normal(size=(2, 5, 7))
    given = {
        "coordinates": rng.integers(0, 4, (1, 5, 2)),
        "bias": rng.normal(size=(3, 5, 5)),
        "key_mask": np.arange(5) < np.array([[5], [3]]),
        "causal": True,
        "keep_seed": (5, 9),
        "rate": 0.3,
        "positions": np.array([[0, 2, 3, 7, 8], [1, 2, 3, 4, 9]]),
    }
    given["bias"] = given["bias"][None]

    if position not in (GRID, CLASS):
        given.pop("coordinates")

    def run(**moved):
        known = weights | {name: x for name, x in moved.items() if name in weights}
        inputs = {"query": moved.get("query", arrays["query"])}
        options = given | {"bias": moved.get("attention_bias", given["bias"])}
        layer = tape_attention.Layer(known, (1,), cap=3.0, position=position)
        tape = Tape()
        output, _, leaves, _ = layer.with_sizes(inputs["query"], inputs["query"])(
            tape, inputs, **options
        )
        return tape, output, leaves

    tape, output, leaves = run()
    tape.backward((output, upstream))
    everything = arrays | weights | {"attention_bias": given["bias"]}
    for name, x in everything.items():
        direction, step = rng.normal(size=x.shape), 1e-5
        sides = [
            (run(**{name: x + sign * step * direction})[1].value * upstream).sum()
            for sign in (1, -1)
        ]
        expected = (sides[0] - sides[1]) / (2 * step)
        found = (leaves[name].gradient * direction).sum()
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8, err_msg=name)


@pytest.mark.parametrize(
    "norm",
    [
        {"type": "layer", "epsilon": 0.1},
        {"type": "rms", "over": "width", "offset": 1.0},
        {"type": "l2", "after_position": True},
    ],
    ids=str,
)
def test_norms_of_whole_arrays_are_those_of_the_loops(norm):
    rng = np.random.default_rng(4)
    x = rng.normal(size=(2, 5, 7))
    weights = layer_weights(rng, 7, 3, 4, 6, (2,))
    weights |= {"query_norm/scale": rng.normal(size=(3, 4)), "key_norm/bias": rng.normal(size=4)}
    position = {"kind": "rotary", "fraction": 1.0, "layout": "half", "theta": 50.0}
    expected, _ = layer_reference.attention_layer(weights, x, norm=norm, rotary=50.0)
    layer = tape_attention.Layer(weights, (1,), position=position, norm=norm).with_sizes(x, x)
    output, *_ = layer(Tape(), {"query": x})
    np.testing.assert_allclose(output.value, expected, rtol=1e-10, atol=1e-11)


def test_latent_attention_of_whole_arrays_is_that_of_the_loops():
    rng = np.random.default_rng(5)
    x, places = rng.normal(size=(2, 5, 7)), rng.integers(0, 9, (2, 5))
    shapes = {
        "query_latent/kernel": (7, 6),
        "query_latent/bias": (6,),
        "query_latent_norm/scale": (6,),
        "query/kernel": (6, 3, 5),
        "latent/kernel": (7, 6),
        "latent/bias": (6,),
        "latent_norm/scale": (4,),
        "key/kernel": (4, 3, 3),
        "value/kernel": (4, 3, 8),
        "attention_output/kernel": (3, 8, 7),
    }
    weights = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    position = {"kind": "rotary", "fraction": 1.0, "layout": "interleaved"}
    layer = tape_attention.LatentLayer(weights, (1,), position=position, rotary_dim=2)
    output, scores, _, _ = layer.with_sizes(x, x)(
        Tape(), {"query": x}, causal=True, positions=places
    )
    expected = latent_reference.latent_attention(
        weights, x, rotated=2, causal=True, positions=places
    )
    np.testing.assert_allclose(output.value, expected[0], rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(scores.value, expected[1], rtol=1e-10, atol=1e-11)
