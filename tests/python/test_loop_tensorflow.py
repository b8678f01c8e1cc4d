"""TensorFlow's graphs that do not know batch and lengths, compiled by XLA and not."""

import functools
import re

import numpy as np
import pytest
import tensorflow as tf

from backends import tensor, to_numpy
from kerasattention import (
    CausalMask,
    GroupQueryAttention,
    PrefixMask,
    RelativePosition,
    scaled_dot_product_attention,
)
from kerasattention.attend import api, registry
from kerasattention.attend.inputs import AttentionInputs
from kerasattention.attend.kernels.tensorflow import loop, loop_blocks
from kerasattention.attend.mask import AttentionMask
from kerasattention.attend.tensors import Span
from problems import OF_EACH_KIND, PROBLEMS, SMALL_BLOCK, K, N, block_size, kernel, problem

CLOSE = {"rtol": 1e-5, "atol": 5e-6}


def unknown_shape(name, shape):
    """None for batch and lengths; heads and sizes are known, and what is one."""
    if name == "sink":
        return shape
    letters = {2: "TS", 3: "BTS", 4: "BNTS"}[len(shape)] if name == "bias" else "BTNH"
    known = [letter in "NH" or size == 1 for letter, size in zip(letters, shape, strict=True)]
    return [size if is_known else None for is_known, size in zip(known, shape, strict=True)]


def run_with_unknown_sizes(given, implementation="blocked", jit_compile=False):
    """Output and gradients in a graph that knows neither batch nor lengths."""
    inputs = {name: tensor(x) for name, x in given.trainable().items()}
    names = list(inputs)
    signature = [tf.TensorSpec(unknown_shape(name, x.shape)) for name, x in inputs.items()]

    @tf.function(input_signature=signature, jit_compile=jit_compile, autograph=False)
    def run(*values):
        with tf.GradientTape() as tape:
            tape.watch(values)
            output = given.attend(
                **dict(zip(names, values, strict=True)), implementation=implementation
            )
            loss = tf.reduce_sum(output * tensor(given.upstream))
        return output, tape.gradient(loss, values)

    output, gradients = run(*inputs.values())
    return to_numpy(output), dict(zip(names, map(to_numpy, gradients), strict=True))


def check(given, **options):
    output, gradients = run_with_unknown_sizes(given, **options)
    np.testing.assert_allclose(output, given.expected[0], **CLOSE)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(
            gradient, given.expected_gradients[name], **CLOSE, err_msg=f"d {name}"
        )


def looped(max_block_logits):
    return kernel(functools.partial(loop.looped_attention, max_block_logits=max_block_logits))


@pytest.mark.parametrize("name", OF_EACH_KIND)
def test_graphs_without_sizes(name):
    with block_size(SMALL_BLOCK):
        check(PROBLEMS[name], implementation=looped(0))


# XLA takes seconds for each: one for each rule that finds a block's keys, and all options at once.
COMPILED = [
    "window, causal, offset",
    "positions of each sample",
    "bias of heads, window",
    "all at once",
]


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_graphs_without_sizes(name):
    with block_size(SMALL_BLOCK):
        check(PROBLEMS[name], implementation=looped(0), jit_compile=True)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("most_logits", [13 * 17 - 1, 13 * 17])
def test_one_block_gives_what_the_loop_gives(most_logits, jit_compile):
    check(PROBLEMS["all at once"], implementation=looped(most_logits), jit_compile=jit_compile)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_one_trace_computes_short_inputs_as_one_block(jit_compile, monkeypatch):
    """A loop that gives nothing but ones says by its output where it was taken."""

    def ones(inputs, blocks):
        return tf.ones_like(inputs.query)

    monkeypatch.setattr(loop, "_forward", ones)
    signature = [tf.TensorSpec([None, None, heads, 7]) for heads in (N, K, K)]

    def short_or_looped(*inputs):
        return api.attend(*inputs, AttentionMask(), implementation=looped(5 * 5))

    attend = tf.function(
        short_or_looped, input_signature=signature, jit_compile=jit_compile, autograph=False
    )
    for length in (3, 5, 6):
        given = problem(T=length, S=length, Hv=7)
        output = attend(*(tensor(x) for x in (given.query, given.key, given.value)))
        expected = given.expected[0] if length < 6 else 1.0
        np.testing.assert_allclose(to_numpy(output), expected, **CLOSE)
    assert attend.experimental_get_tracing_count() == 1


def test_few_queries_need_no_blocks():
    """A step of decoding: a graph that knows T = 1 does not ask how many keys there are."""
    given = problem(T=1)
    keys = [tf.TensorSpec([None, None, K, x.shape[-1]]) for x in (given.key, given.value)]
    signature = [tf.TensorSpec([None, 1, N, given.query.shape[-1]]), *keys]
    selected = []

    def step(*inputs):
        selected.append(registry.select_kernel(api.make_inputs(*inputs, AttentionMask())).name)
        return scaled_dot_product_attention(*inputs)

    attend = tf.function(step, input_signature=signature)
    output = attend(*(tensor(x) for x in (given.query, given.key, given.value)))
    assert selected == ["plain"]
    np.testing.assert_allclose(to_numpy(output), given.expected[0], **CLOSE)


def test_there_is_no_kernel():
    given = PROBLEMS["causal"]
    inputs = [tensor(x) for x in (given.query, given.key, given.value)]
    with pytest.raises(ValueError, match=r"none honours the backend \(tensorflow has no kernel"):
        scaled_dot_product_attention(*inputs, causal=True, implementation="fused")


def test_positions_of_one_row_for_all_where_the_rows_are_unknown():
    """A graph's gradient by a table of relative positions is that of eager calls."""
    layer = GroupQueryAttention(3, 2, 1, flash_attention=True, position=RelativePosition(8, 16))
    x = tensor(np.random.default_rng(3).normal(size=(2, 5, 7)))
    layer.build(x.shape)

    def gradient(x, positions):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(x, positions=positions) ** 2)
        return tape.gradient(loss, layer.position.table.value)

    signature = [tf.TensorSpec((None, None, 7)), tf.TensorSpec((None, None), "int32")]
    traced = tf.function(gradient, input_signature=signature, autograph=False)
    positions = 2 * tf.range(5)[None]
    np.testing.assert_allclose(traced(x, positions), gradient(x, positions), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    "mask", [AttentionMask(causal=True), AttentionMask(further_rules=(PrefixMask(3), CausalMask()))]
)
def test_blocks_have_few_numbers_of_keys_and_all_that_they_see(mask):
    # oneDNN compiles a product for each number of keys, and keeps the code.
    size, count = 4, 200
    keys = np.zeros((1, 1, size * count - 3, 1), "float32")
    inputs = AttentionInputs(keys[:, :, None], keys, keys, mask, scale=1.0)
    blocks = loop_blocks.BlockLoop(size, count, compiled=False)
    found = [blocks.block(inputs, tf.constant(i)).columns for i in range(count)]
    stops = [int(columns.start + columns.size) for columns in found]
    wanted = [mask.key_spans(Span(i * size, size), keys.shape[2])[-1].stop for i in range(count)]
    assert all(a <= b <= keys.shape[2] for a, b in zip(wanted, stops, strict=True))
    step = -(-keys.shape[2] // loop_blocks.MOST_SIZES)
    assert all(b - a < step for a, b in zip(wanted, stops, strict=True))
    assert len(set(stops)) <= loop_blocks.MOST_SIZES


def test_a_gradient_calls_no_operation_that_xla_compiles_for_each_block():
    @tf.function(autograph=False)
    def gradient(query, key):
        with tf.GradientTape() as tape:
            tape.watch([query, key])
            output = scaled_dot_product_attention(query, key, key, causal=True)
        return tape.gradient(output, [query, key])

    like = tf.TensorSpec((1, 2**14, 2, 4))
    graph = gradient.get_concrete_function(like, like).graph.as_graph_def()
    kinds = set(re.findall(r'op: "(\w+)"', str(graph)))  # of its functions too
    assert "InplaceAdd" in kinds
    assert not any(kind.startswith("Xla") for kind in kinds)
