"""Spans of tokens that see each other whatever the rules of positions say (`bidirectional`)."""

import itertools

import keras
import numpy as np
import pytest
from keras import ops

import kerasattention as ka
from backends import BACKEND, JIT, compiled, sampled, tensor, to_numpy, value_and_gradients
from kerasattention.attend.bidirectional import known_range, visible_range
from kerasattention.attend.mask import AttentionMask
from kerasattention.attend.tensors import Span
from layer_reference import attention_layer
from layer_twins import pure, randomize, weights_of
from problems import block_size, kernel, problem
from test_attend import check
from test_rules import IMPLEMENTATIONS

# The engine ---------------------------------------------------------------------------------

T, S = 61, 67
RNG = np.random.default_rng(3)


def spans(length, *places):
    """(B, length): each place is (row, first, stop, id); 0 elsewhere."""
    found = np.zeros((2, length), int)
    for row, first, stop, number in places:
        found[row, first:stop] = number
    return found


# A span over several blocks, two of one id that are apart, and one of the last tokens.
IDS = spans(T, (0, 3, 29, 1), (0, 40, 43, 2), (1, 5, 7, 4), (1, 33, 38, 4), (1, 50, T, 9))
QUERIES, KEYS = IDS, spans(S, (0, 3, 29, 1), (0, 60, 64, 2), (1, 5, 7, 4), (1, 66, S, 4))
PADDING = np.arange(T) < np.array([[T], [53]])
SEGMENTS = np.repeat([[1, 2, 0], [1, 1, 2]], [20, 20, 21], axis=1)
MASK = RNG.random((2, 1, T, T)) < 0.8


def made(ids=(IDS, IDS), keys=T, **fields):
    own = {"query_bidirectional": ids[0], "key_bidirectional": ids[1]}
    return problem(T=T, S=keys, mask_fields=own | fields)


GIVEN = {
    "causal": made(causal=True),
    "window": made(window=5),
    "window, causal, T != S": made((QUERIES, KEYS), S, causal=True, window=4),
    "causal, offset": made((QUERIES, KEYS), S, causal=True, offset=11),
    "causal, positions": made(
        causal=True,
        query_positions=RNG.integers(0, 97, (2, T)),
        key_positions=RNG.integers(0, 97, (2, T)),
    ),
    "all masks": made(
        causal=True,
        window=9,
        query_mask=PADDING,
        key_mask=PADDING,
        query_segments=SEGMENTS,
        key_segments=SEGMENTS,
        mask=MASK,
    ),
    "of no rule": made(key_mask=PADDING),
}
ON_JAX = [("window, causal, T != S", "tiles"), ("all masks", "tiles"), ("causal", "chosen")]
ON_JAX += [("causal, positions", "plain"), ("all masks", "blocked")]


@pytest.mark.parametrize(
    ("name", "implementation"), sampled(itertools.product(GIVEN, IMPLEMENTATIONS), ON_JAX)
)
def test_every_kernel_lets_spans_see_each_other(name, implementation):
    check(GIVEN[name], implementation=IMPLEMENTATIONS[implementation], block_size=7)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow unrolls blocks")
def test_blocks_of_tensorflow_that_are_unrolled():
    from kerasattention.attend.kernels.tensorflow.unrolled import unrolled_attention

    for name in ("window", "all masks"):
        check(GIVEN[name], implementation=kernel(unrolled_attention), block_size=7)


@pytest.mark.skipif(BACKEND != "torch", reason="torch's function")
def test_the_function_of_torch():
    from kerasattention.attend.kernels.torch.sdpa import sdpa_attention

    check(GIVEN["all masks"], implementation=kernel(sdpa_attention), block_size=7)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's graphs")
@pytest.mark.parametrize("name", ["causal", "window, causal, T != S", "all masks"])
def test_graphs_that_do_not_know_the_ids(name):
    from test_loop_tensorflow import check as check_graph
    from test_loop_tensorflow import looped

    with block_size(7):
        check_graph(GIVEN[name], implementation=looped(0))


def visible(mask, rows):
    """(S): whether one of these queries sees a key, pair by pair."""
    found = to_numpy(mask.block_mask(rows, Span(0, mask.key_bidirectional.shape[1])))
    return found.any(axis=(0, 1, 2))


@pytest.mark.parametrize("fields", [{"causal": True}, {"window": 5}, {"causal": True, "offset": 6}])
@pytest.mark.parametrize("ids", ["in order", "in any order", "none"])
def test_the_range_of_a_block_has_all_keys_that_it_sees(ids, fields):
    numbers = RNG.integers(-1, 4, (2, T + S)) * RNG.integers(0, 2, (2, T + S))
    numbers = {"in order": np.sort(numbers), "in any order": numbers, "none": 0 * numbers}[ids]
    queries, keys = (tensor(x, "int32") for x in (numbers[:, 5 : 5 + T], numbers[:, :S]))
    mask = AttentionMask(query_bidirectional=queries, key_bidirectional=keys, **fields)
    smaller = 0
    for start in range(0, T, 7):
        rows = Span(start, min(7, T - start))
        first, stop = (int(x) for x in visible_range(mask, rows, S))
        seen = np.flatnonzero(visible(mask, rows))
        assert 0 <= first <= S
        assert 0 <= stop <= S
        assert not len(seen) or (first <= seen[0] and stop > seen[-1])
        if ids == "none" and len(seen):
            assert (first, stop) == (min(seen[0], first), seen[-1] + 1)
        smaller += stop - first < S
        known = None if BACKEND == "jax" else Span(first, max(stop - first, 0))
        assert known_range(mask, rows, S) == known
    assert smaller or ids == "in any order"


def test_a_batch_of_no_rows_has_the_range_of_its_rules():
    ids = tensor(np.zeros((0, T)), "int32")
    mask = AttentionMask(causal=True, query_bidirectional=ids, key_bidirectional=ids)
    assert tuple(int(x) for x in visible_range(mask, Span(7, 7), T)) == (0, 14)


def test_a_span_between_two_others_may_be_let_in():
    ids = np.array([[1, 1, 3, 3, 2, 2, 0, 1, 0, 0]])
    ids = tensor(ids, "int32")
    window = {"window": 1, "query_bidirectional": ids, "key_bidirectional": ids}
    mask = AttentionMask(**window)
    found = [tuple(int(x) for x in visible_range(mask, Span(i, 1), 10)) for i in (0, 2, 4, 6, 8)]
    assert found == [(0, 8), (2, 4), (4, 6), (6, 7), (8, 9)]
    assert tuple(int(x) for x in visible_range(mask, Span(1, 2), 10)) == (0, 8)


def test_a_mask_says_what_is_known_with_its_ids():
    ids = tensor(IDS, "int32")
    given = {"causal": True, "window": 5, "query_bidirectional": ids, "key_bidirectional": ids}
    mask = AttentionMask(**given)
    # JAX finds the keys in its loops.
    assert mask.key_range(Span(0, 7), T) == Span(0, T if BACKEND == "jax" else 38)
    assert mask.reach_outside_spans == (4, 0, 0)
    assert mask.position_rules == ()
    assert mask.reach == (None, None, 0)
    assert [rule.argument for rule in mask.token_rules] == ["bidirectional"]
    assert mask.differs_by_query
    assert not mask.is_per_token
    assert mask.lookahead is None
    # The rule of the layer, by which relative positions choose their buckets.
    assert mask.is_causal
    assert mask.without_position_rules() is mask
    assert mask.only_positions().block_mask(Span(0, T), Span(0, T)) is None
    # Nothing is computed where there is no rule.
    without = AttentionMask(query_bidirectional=ids, key_bidirectional=ids)
    assert without.block_mask(Span(0, T), Span(0, T)) is None
    assert not without.masks_tokens


# The layers ---------------------------------------------------------------------------------

B, D, LENGTH = 2, 10, 13
X = np.random.default_rng(1).normal(size=(B, LENGTH, D)).astype("float32")
UPSTREAM = np.random.default_rng(2).normal(size=(B, LENGTH, D)).astype("float32")
Q, K = np.arange(LENGTH)[:, None], np.arange(LENGTH)[None]
OWN = np.array([[0, 1, 1, 1, 0, 2, 2, 0, 0, 3, 3, 3, 3], [5, 5, 0, 0, 0, 0, 5, 0, 0, 0, -1, -1, 0]])
SAME = (OWN[:, None, :, None] == OWN[:, None, None, :]) & (OWN > 0)[:, None, None]


def layer_of(kind, **options):
    if kind == "multi-head":
        made = ka.MultiHeadAttention(4, 5, **options)
    else:
        made = ka.GroupQueryAttention(5, 6, 3, **options)
    made.build((B, LENGTH, D))
    randomize(made)
    return made


def expected(layer, seen, **options):
    mask = np.broadcast_to(seen, (B, layer.heads.query, LENGTH, LENGTH))
    return attention_layer(weights_of(layer), X.astype(float), mask=mask, **options)[0]


def close(found, wanted):
    np.testing.assert_allclose(to_numpy(found), wanted, rtol=1e-4, atol=2e-5)


RULES = {
    "causal": ({"use_causal_mask": True}, K <= Q),
    "window": ({"sliding_window": 3, "use_causal_mask": True}, (K <= Q) & (Q - K < 3)),
    "chunks": ({"mask": ka.ChunkMask(4) & ka.CausalMask()}, (K <= Q) & (Q // 4 == K // 4)),
    "function": ({"mask": ka.MaskFunction(lambda q, k: k * k <= 2 * q)}, K * K <= 2 * Q),
}


@pytest.mark.parametrize("kind", ["multi-head", "grouped"])
@pytest.mark.parametrize("rule", RULES)
def test_a_layer_joins_spans_to_its_rule(kind, rule):
    options, seen = RULES[rule]
    layer = layer_of(kind, **options)
    close(layer(X, bidirectional=OWN), expected(layer, seen | SAME))
    close(layer(X), expected(layer, seen))


def test_padding_segments_and_masks_still_hold():
    padding = np.arange(LENGTH) < np.array([[LENGTH], [6]])
    segments = np.array([[1] * 6 + [2] * 7, [1] * 3 + [2] * 6 + [0] * 4])
    given = (K * Q) % 3 != 1
    same = (segments[:, None, :, None] == segments[:, None, None, :]) & (segments != 0)[
        :, None, None
    ]
    layer = layer_of("grouped", use_causal_mask=True, sliding_window=4)
    seen = ((K <= Q) & (Q - K < 4) | SAME) & given & padding[:, None, None, :] & same
    ids = {"bidirectional": OWN, "segment_ids": segments}
    close(
        layer(X, attention_mask=given, value_mask=padding, **ids),
        expected(layer, seen),
    )
    # A query of a span whose keys are all hidden from it has no key: its output is the bias.
    nothing = np.zeros((LENGTH, LENGTH), bool)
    found = to_numpy(layer(X, attention_mask=nothing, bidirectional=OWN))
    close(found, np.broadcast_to(weights_of(layer)["attention_output/bias"], found.shape))


def test_a_hand_worked_row():
    """Equal logits: the output is the mean of the values that a query sees."""
    layer = ka.MultiHeadAttention(1, 1, use_bias=False, use_causal_mask=True)
    layer.build((1, 4, 1))
    layer.set_weights(
        [np.zeros((1, 1, 1)), np.ones((1, 1, 1)), np.ones((1, 1, 1)), np.ones((1, 1, 1))]
    )
    x = np.array([[[1.0], [3.0], [5.0], [11.0]]], "float32")
    ids = np.array([[0, 1, 1, 0]])
    close(layer(x, bidirectional=ids)[0, :, 0], [1.0, 3.0, 3.0, 5.0])
    close(layer(x)[0, :, 0], [1.0, 2.0, 3.0, 5.0])


def test_one_row_of_ids_serves_all_samples():
    layer = layer_of("grouped", use_causal_mask=True)
    close(layer(X, bidirectional=OWN[:1]), expected(layer, (K <= Q) | SAME[:1]))


def test_gradients_and_long_sequences():
    """Blocks of queries: the memory of a block, and gradients against a mask of all pairs."""
    layer = layer_of("grouped", use_causal_mask=True, sliding_window=3)
    seen = (K <= Q) & (Q - K < 3) | SAME
    other = layer_of("grouped")
    with block_size(4):
        function, values = pure(layer, [X], bidirectional=OWN)
        (found,), gradients = value_and_gradients(function, values, tensor(UPSTREAM))
        function, values = pure(other, [X], attention_mask=seen)
        (wanted,), theirs = value_and_gradients(function, values, tensor(UPSTREAM))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    for (name, gradient), of_mask in zip(gradients.items(), theirs.values(), strict=True):
        np.testing.assert_allclose(gradient, of_mask, rtol=1e-4, atol=2e-5, err_msg=name)


@pytest.mark.parametrize(
    "position", [ka.RotaryPosition(fraction=0.8), ka.AlibiPosition()], ids=type
)
def test_positions_are_those_of_the_tokens(position):
    """A span changes which keys are seen, not where they are."""
    layer = layer_of("grouped", use_causal_mask=True, position=position)
    other = layer_of("grouped", position=position)
    other.set_weights(layer.get_weights())
    seen = (K <= Q) | SAME
    close(layer(X, bidirectional=OWN), to_numpy(other(X, attention_mask=seen)))


def test_relative_positions_keep_the_buckets_of_a_causal_layer():
    """Later keys of a span are in the bucket of distance 0, as at a step of decoding."""
    layer = layer_of("grouped", use_causal_mask=True, position=ka.RelativePosition(6, 9))
    everything = np.ones((B, LENGTH), "int32")
    found = to_numpy(layer(X, bidirectional=everything, return_attention_scores=True)[1])
    assert (found > 0).all()


def test_axes_and_scores():
    layer = ka.MultiHeadAttention(2, 3, attention_axes=(2,), use_causal_mask=True)
    x = np.random.default_rng(4).normal(size=(B, 3, LENGTH, D)).astype("float32")
    _, scores = layer(x, bidirectional=OWN, return_attention_scores=True)
    seen = np.broadcast_to(((K <= Q) | SAME)[:, None], scores.shape)
    np.testing.assert_array_equal(to_numpy(scores) > 0, seen)


def test_float64(doubles):
    layer = ka.GroupQueryAttention(5, 6, 3, use_causal_mask=True, dtype="float64")
    layer.build((B, LENGTH, D))
    randomize(layer)
    found = to_numpy(layer(tensor(X, "float64"), bidirectional=OWN))
    np.testing.assert_allclose(found, expected(layer, (K <= Q) | SAME), rtol=1e-12, atol=1e-12)


def test_mixed_precision():
    layer = layer_of("grouped", use_causal_mask=True, dtype="mixed_bfloat16")
    wanted = expected(layer, (K <= Q) | SAME)
    found = to_numpy(layer(X, bidirectional=OWN))
    assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()


def test_an_overridden_attention_is_given_the_mask():
    class Overridden(ka.GroupQueryAttention):
        def _compute_attention(self, query, key, value, attention_mask=None, **options):
            return super()._compute_attention(query, key, value, attention_mask)

    layer = Overridden(5, 6, 3, use_causal_mask=True)
    layer.build((B, LENGTH, D))
    randomize(layer)
    close(layer(X, bidirectional=OWN), expected(layer, (K <= Q) | SAME))


def test_nan_of_tokens_that_nobody_sees_goes_nowhere():
    layer = layer_of("grouped", use_causal_mask=True)
    x = X.copy()
    x[0, 11] = np.nan  # of the span of tokens 9 to 12
    found = to_numpy(layer(x, bidirectional=OWN))
    assert np.isnan(found[0, 9:]).any(axis=-1).all()
    np.testing.assert_allclose(
        found[0, :9], to_numpy(layer(X, bidirectional=OWN))[0, :9], atol=1e-6
    )
    np.testing.assert_allclose(found[1], to_numpy(layer(X, bidirectional=OWN))[1], atol=1e-6)


# Models -------------------------------------------------------------------------------------


def model_of(length=None, **options):
    inputs = keras.Input((length, D))
    ids = keras.Input((length,), dtype="int32", name="spans")
    layer = ka.GroupQueryAttention(5, 6, 3, use_causal_mask=True, **options)
    model = keras.Model([inputs, ids], layer(inputs, bidirectional=ids))
    randomize(layer)
    return model, layer


def test_a_model_trains_and_comes_back(tmp_path):
    model, layer = model_of()
    before = [to_numpy(weight.value) for weight in layer.trainable_weights]
    model.compile("sgd", "mse", jit_compile=JIT)
    model.fit([X, OWN], UPSTREAM, verbose=0)
    for weight, old in zip(layer.trainable_weights, before, strict=True):
        if not weight.path.endswith("key/bias"):  # changes no softmax
            assert np.abs(to_numpy(weight.value) - old).max() > 0, weight.path
    found = model.predict([X, OWN], verbose=0)
    close(tensor(found), expected(layer, (K <= Q) | SAME))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded.predict([X, OWN], verbose=0), found, atol=1e-6)


def test_a_graph_gives_the_same():
    layer = layer_of("grouped", use_causal_mask=True, sliding_window=3)
    call = compiled(lambda x, ids: layer(x, bidirectional=ids))
    found = call(tensor(X), tensor(OWN, "int32"))
    close(found, expected(layer, (K <= Q) & (Q - K < 3) | SAME))


def test_ids_that_a_model_computes():
    tokens = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(7, D)(tokens)
    layer = ka.GroupQueryAttention(5, 6, 3, use_causal_mask=True)
    output = layer(x, bidirectional=ops.cast(ops.equal(tokens, 6), "int32"))
    model = keras.Model(tokens, output)
    given = np.array([[1, 6, 6, 2, 6]])
    changed = np.array([[1, 6, 6, 2, 3]])
    found, other = (to_numpy(model(x)) for x in (given, changed))
    # The last token, of the span, is seen by the first of it, and not by the others.
    assert np.abs(found - other)[0, [1, 2]].max() > 1e-3
    np.testing.assert_allclose(found[0, [0, 3]], other[0, [0, 3]], atol=1e-6)


# What makes no sense --------------------------------------------------------------------------


def test_spans_need_self_attention():
    layer = ka.MultiHeadAttention(3, 4, use_causal_mask=True)
    with pytest.raises(ValueError, match=r"`bidirectional` is for self-attention.*attention_mask"):
        layer(X, X[:, :5].copy(), bidirectional=OWN)


@pytest.mark.parametrize(
    ("ids", "rule"),
    [
        (np.ones((B, LENGTH), "float32"), "must be integers"),
        (np.ones((B, LENGTH + 1), "int32"), r"must have shape \(B, T\) = \(2, 13\)"),
        (np.ones(LENGTH, "int32"), r"must have shape \(B, T\)"),
        ("image", "must be a tensor"),
    ],
)
def test_ids_that_do_not_fit(ids, rule):
    layer = ka.MultiHeadAttention(3, 4, use_causal_mask=True)
    with pytest.raises(ValueError, match=f"`bidirectional` {rule}"):
        layer(X, bidirectional=ids)
