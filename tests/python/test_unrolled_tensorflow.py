"""Blocks of a window that TensorFlow folds into the batch, against the float64 reference."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from backends import tensor
from kerasattention.attend import registry
from kerasattention.attend.api import make_inputs
from kerasattention.attend.kernels.tensorflow import unrolled
from kerasattention.attend.mask import AttentionMask
from problems import PROBLEMS, SMALL_BLOCK, block_size, kernel, problem
from test_attend import check

SIZE = 3


def long(**options):
    return problem(T=61, S=61, mask_fields=options)


SEGMENTS = np.sort(np.random.default_rng(7).integers(0, 4, (2, 61)))
WINDOWS = {
    "causal": long(causal=True, window=7),
    "narrower than a block": long(causal=True, window=2),
    "two-sided": long(window=5),
    "from an offset": problem(T=37, S=61, mask_fields={"causal": True, "window": 7, "offset": 23}),
    "more queries than keys": problem(T=61, S=29, mask_fields={"window": 4}),
    "padding": long(causal=True, window=7, key_mask=np.arange(61) < np.array([[61], [23]])),
    "segments": long(causal=True, window=7, query_segments=SEGMENTS, key_segments=SEGMENTS),
    "sink": problem(
        T=61,
        S=61,
        sink=np.random.default_rng(1).normal(size=15),
        mask_fields={"causal": True, "window": 7},
    ),
    "cap": problem(T=61, S=61, cap=1.3, scale=1.0, mask_fields={"window": 7}),
}


@pytest.mark.parametrize("name", WINDOWS)
@pytest.mark.parametrize("logits", [2**12, 2**20])
def test_strided_blocks(name, logits):
    """In several parts, and in as few as can be."""
    run = functools.partial(unrolled.unrolled_attention, strided_logits=logits)
    check(WINDOWS[name], implementation=kernel(run), block_size=SIZE)


def test_strided_blocks_cover_most_of_a_window():
    """Else the test above would prove nothing about them."""
    given = WINDOWS["causal"]
    query, key, value = (tensor(x) for x in (given.query, given.key, given.value))
    problem = make_inputs(query, key, value, AttentionMask(**given.mask_fields))
    planned = unrolled.plan_strided_blocks(problem, SIZE)
    assert max(blocks.count for blocks in planned) >= 15
    covered = [
        row for blocks in planned for row in range(blocks.all_rows.start, blocks.all_rows.stop)
    ]
    assert covered == list(range(61))


CLOSE = {"rtol": 1e-5, "atol": 5e-6}


# One of each kind of mask, bias and option: all problems run eagerly.
GRAPHS = [
    *("nothing hidden", "causal, more queries than keys", "window, causal, offset"),
    *("positions of each sample", "padded queries and keys, causal", "segments, causal"),
    *("mask with empty rows", "bias (B, N, T, S), causal", "bias of heads, window"),
    *("bias of minus infinity", "cap, bias, causal", "sink, empty rows", "dropout"),
    "all at once",
]


def check_graph(name, signature=None):
    given = (PROBLEMS | WINDOWS)[name]
    inputs = {name: tensor(x) for name, x in given.trainable().items()}

    @tf.function(autograph=False, input_signature=signature)
    def differentiated(inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            output = given.attend(**inputs, implementation="blocked")
            loss = tf.reduce_sum(output * tensor(given.upstream))
        return output, tape.gradient(loss, inputs)

    with block_size(SMALL_BLOCK if name in PROBLEMS else SIZE):
        output, gradients = differentiated(inputs)
    np.testing.assert_allclose(output, given.expected[0], **CLOSE)
    for name, gradient in gradients.items():
        expected = given.expected_gradients[name]
        np.testing.assert_allclose(gradient, expected, **CLOSE, err_msg=f"d {name}")


@pytest.mark.parametrize("name", [*GRAPHS, *WINDOWS])
def test_graphs_of_known_lengths(name):
    """Of three key heads one is computed beside the two others."""
    check_graph(name)


# Where diagonals are set, and where blocks are folded into the batch.
@pytest.mark.parametrize("name", ["causal, more queries than keys", "causal", "padding"])
def test_graphs_of_an_unknown_batch(name):
    """As `fit()` has them once a last batch was smaller."""
    given = (PROBLEMS | WINDOWS)[name]
    signature = {n: tf.TensorSpec([None, *x.shape[1:]]) for n, x in given.trainable().items()}
    check_graph(name, [signature])


def test_heads_are_computed_in_two_groups():
    """Else the test above would prove nothing about them."""
    given = PROBLEMS["causal"]
    query, key, value = (tensor(x) for x in (given.query, given.key, given.value))
    problem = make_inputs(query, key, value, AttentionMask(causal=True))
    with tf.Graph().as_default():
        assert unrolled.plan_head_groups(problem) == [(0, 1), (1, 2)]
    assert unrolled.plan_head_groups(problem) == [(0, 3)]


@pytest.mark.parametrize(
    ("length", "name", "size"),
    [(6144, "unrolled", 128), (12288, "unrolled", 256), (12289, "loop", None)],
)
def test_blocks_of_twice_the_size_before_a_loop(length, name, size):
    """Up to 48 blocks of 128 queries, then of 256, then a loop."""
    inputs = [tf.TensorSpec((1, length, 1, 1)) for _ in range(3)]
    found = []

    def trace(*tensors):
        given = make_inputs(*tensors, AttentionMask(causal=True))
        found.append(registry.select_kernel(given, never_hold_scores=True).name)
        if size is not None:
            found.append(unrolled.plan_steps(given, None)[0].rows.size)
        return tensors[0]

    tf.function(trace, input_signature=inputs, autograph=False).get_concrete_function()
    assert found == [f"tensorflow.{name}", *([] if size is None else [size])]
