"""Masks as an algebra, through every kernel, against tables that NumPy writes pair by pair."""

import functools
import itertools

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from backends import BACKEND, compiled, run, sampled, tensor, to_numpy
from kerasattention import (
    BlockMask,
    CausalMask,
    ChunkMask,
    DilatedMask,
    MaskFunction,
    PrefixMask,
    WindowMask,
)
from kerasattention.attend import api, intervals, tiling
from kerasattention.attend.mask import AttentionMask
from kerasattention.attend.tensors import KeySpans, Span, spans_of
from kerasattention.masks.base import as_mask
from kerasattention.masks.join import rule_fields
from problems import kernel, problem
from test_attend import check

T = 61
BLOCKS = np.random.default_rng(3).random((7, 7)) < 0.4
BLOCKS[2] = False


@keras.saving.register_keras_serializable(package="tests")
def near_or_early(q, k):
    return ops.logical_or(k * k < 2 * q, k < 3)


causal, window, chunk = CausalMask(), WindowMask(7), ChunkMask(11)
# Each mask with its rule, written down for arrays of positions.
MASKS = {
    "causal": (causal, lambda q, k: k <= q),
    "window": (WindowMask(5, 3), lambda q, k: (q - 5 < k) & (k < q + 3)),
    "window and causal": (window & causal, lambda q, k: (q - 7 < k) & (k <= q)),
    "chunk": (chunk, lambda q, k: q // 11 == k // 11),
    "prefix": (causal | PrefixMask(9), lambda q, k: (k <= q) | (k < 9)),
    "sinks": (
        causal & (window | PrefixMask(4)),
        lambda q, k: (k <= q) & ((q - 7 < k) & (k < q + 7) | (k < 4)),
    ),
    "dilated": (DilatedMask(3) & causal, lambda q, k: (abs(q - k) % 3 == 0) & (k <= q)),
    "blocks": (BlockMask(BLOCKS, 9), lambda q, k: BLOCKS[q // 9, k // 9]),
    "not": (
        ~(window | chunk) & causal,
        lambda q, k: ~((q - 7 < k) & (k < q + 7) | (q // 11 == k // 11)) & (k <= q),
    ),
    "far": (~WindowMask(20), lambda q, k: (k <= q - 20) | (k >= q + 20)),
    "function": (
        MaskFunction(near_or_early) & causal,
        lambda q, k: ((k * k < 2 * q) | (k < 3)) & (k <= q),
    ),
    "several spans": (
        (BlockMask(BLOCKS, 9) | PrefixMask(2)) & ~WindowMask(2, 30),
        lambda q, k: (BLOCKS[q // 9, k // 9] | (k < 2)) & ~((q - 2 < k) & (k < q + 30)),
    ),
}


def table(rule, queries=None, keys=None):
    queries = np.arange(T) if queries is None else queries
    keys = np.arange(T) if keys is None else keys
    q, k = np.broadcast_arrays(queries[..., :, None], keys[..., None, :])
    return rule(q, k)


@functools.lru_cache
def plainly_made(name):
    """Its reference is computed once for all kernels."""
    return made(name)


def made(name, **options):
    """A problem whose table of visible pairs is that of a mask, and of padding where given."""
    mask, rule = MASKS[name]
    fields = options.pop("mask_fields", {})
    given = problem(T=T, S=T, mask_fields=rule_fields(mask, False, None) | fields, **options)
    seen = table(rule)
    if "query_positions" in fields:
        seen = table(rule, fields["query_positions"], fields["key_positions"])[:, None]
    if "key_mask" in fields:
        seen = seen & fields["key_mask"][:, None, None, :]
    given.__dict__["seen"] = np.broadcast_to(seen, given.shape)
    return given


def tiles(inputs, block_size):
    """Several tiles of keys, and on TensorFlow the loop."""
    if BACKEND == "torch":
        from kerasattention.attend.kernels.torch.tiled import tiled_attention

        return tiled_attention(inputs, block_size, tile_keys=5)
    if BACKEND == "jax":
        from kerasattention.attend.kernels.jax import tiled

        tile = tiled.choose_tile_size(inputs.scaled(), block_size, columns=5)
        return tiled.tiled_attention(inputs, tile=tile)
    from kerasattention.attend.kernels.tensorflow.loop import looped_attention

    return looped_attention(inputs, block_size, max_block_logits=0)


def one_tile(inputs, block_size):
    """One tile for each block, which may have several spans."""
    if BACKEND == "jax":
        from kerasattention.attend.kernels.jax import tiled

        tile = tiled.choose_tile_size(inputs.scaled(), block_size, columns=32)
        return tiled.tiled_attention(inputs, tile=tile)
    from kerasattention.attend.kernels.blocked import blocked_attention

    return blocked_attention(inputs, block_size)


IMPLEMENTATIONS = {
    "plain": "plain",
    "blocked": "blocked",
    "tiles": kernel(tiles),
    "one tile": kernel(one_tile),
}
if BACKEND == "torch":
    IMPLEMENTATIONS["fused"] = "fused"


def test_blocks_that_are_alike_become_one_call():
    """Window and sinks: two spans of keys, of which one moves with the queries."""
    given = plainly_made("sinks")
    inputs = api.make_inputs(
        *(tensor(x) for x in (given.query, given.key, given.value)),
        AttentionMask(**given.mask_fields),
    )
    if BACKEND == "tensorflow":
        from kerasattention.attend.kernels.tensorflow.unrolled import plan_strided_blocks

        planned = plan_strided_blocks(inputs, 7)
    else:
        planned = tiling.plan_kernel_calls(inputs, True, 7)
    assert max(blocks.count for blocks in planned) > 3
    assert any(blocks.fixed == (0,) for blocks in planned)
    rows = [row for b in planned for row in range(b.all_rows.start, b.all_rows.stop)]
    assert rows == list(range(T))


ON_JAX = [("sinks", "one tile"), ("sinks", "tiles"), ("several spans", "tiles"), ("far", "tiles")]
ON_JAX += [("function", "one tile"), ("chunk", "blocked"), ("prefix", "tiles"), ("blocks", "plain")]


@pytest.fixture(autouse=True)
def narrow_gaps(monkeypatch):
    """Blocks of these sizes leave out gaps of a few keys too."""
    from kerasattention.attend import mask

    monkeypatch.setattr(mask, "LEAST_GAP", 1)


@pytest.mark.parametrize(
    ("name", "implementation"), sampled(itertools.product(MASKS, IMPLEMENTATIONS), ON_JAX)
)
def test_every_kernel_obeys_every_mask(name, implementation):
    check(plainly_made(name), implementation=IMPLEMENTATIONS[implementation], block_size=7)


PADDING = np.arange(T) < np.array([[T], [23]])
OPTIONS = {
    "padding": {"mask_fields": {"key_mask": PADDING}},
    "bias": {"bias": np.random.default_rng(1).normal(size=(2, 1, T, T))},
    "dropout, sink": {"rate": 0.2, "sink": np.linspace(-1, 1, 15)},
    "cap": {"cap": 1.3, "scale": 1.0},
}
WITH_OPTIONS = list(itertools.product(["sinks", "several spans"], OPTIONS, ["blocked", "tiles"]))


@pytest.mark.parametrize(
    ("name", "option", "implementation"),
    sampled(WITH_OPTIONS, [("sinks", option, "tiles") for option in OPTIONS]),
)
def test_options_beside_a_mask(name, option, implementation):
    given = made(name, **OPTIONS[option])
    check(given, implementation=IMPLEMENTATIONS[implementation], block_size=7)


QUERIES = np.random.default_rng(4).integers(0, 60, (2, T))
KEYS = np.random.default_rng(5).integers(0, 60, (2, T))
POSITIONED = ["sinks", "chunk", "blocks", "function", "not"]


@pytest.mark.parametrize(
    ("name", "implementation"),
    sampled(itertools.product(POSITIONED, IMPLEMENTATIONS), [("sinks", "tiles"), ("not", "tiles")]),
)
def test_masks_compare_positions(name, implementation):
    given = made(name, mask_fields={"query_positions": QUERIES, "key_positions": KEYS})
    check(given, implementation=IMPLEMENTATIONS[implementation], block_size=7)


HALVES = {"query_positions": QUERIES + 0.5, "key_positions": KEYS + 0.25}
# NumPy's indices are integers.
REAL_BLOCKS = BlockMask(BLOCKS, 9), lambda q, k: BLOCKS[(q // 9).astype(int), (k // 9).astype(int)]


@pytest.mark.parametrize("name", ["sinks", "chunk", "blocks", "function", "not", "far"])
def test_masks_compare_positions_that_are_real_numbers(name, monkeypatch):
    monkeypatch.setitem(MASKS, "blocks", REAL_BLOCKS)
    for implementation in ("plain", "tiles"):
        given = made(name, mask_fields={n: x.astype("float32") for n, x in HALVES.items()})
        check(given, implementation=IMPLEMENTATIONS[implementation], block_size=7)


COMPILED = ["sinks", "several spans"] if BACKEND == "jax" else [*POSITIONED, "several spans"]


@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.parametrize("jit_compile", [False, True] if BACKEND == "tensorflow" else [False])
def test_compiled_functions_give_the_same(name, jit_compile):
    given = plainly_made(name)
    inputs = {name: tensor(x) for name, x in given.trainable().items()}
    for implementation in ("blocked", "tiles"):
        chosen = IMPLEMENTATIONS[implementation]
        attend = compiled(
            lambda chosen=chosen, **v: given.attend(**v, implementation=chosen, block_size=7),
            jit_compile,
        )
        np.testing.assert_allclose(
            to_numpy(attend(**inputs)), given.expected[0], rtol=1e-5, atol=5e-6
        )


# What a mask says of blocks ---------------------------------------------------------------

ROWS = [Span(0, 7), Span(7, 7), Span(28, 7), Span(56, 5), Span(0, T), Span(40, 1)]


@pytest.mark.parametrize("name", MASKS)
def test_no_visible_key_is_left_out_and_no_mask_is_forgotten(name):
    mask, rule = MASKS[name]
    asked, seen = AttentionMask(**rule_fields(mask, False, None)), table(rule)
    for rows in ROWS:
        of_rows = seen[rows.start : rows.stop]
        kept = np.zeros(T, bool)
        for span in asked.key_spans(rows, T):
            assert not kept[span.start : span.stop].any()
            kept[span.start : span.stop] = True
            if not asked.masks_positions(rows, span):
                assert of_rows[:, span.start : span.stop].all()
        assert not of_rows[:, ~kept].any()
        columns = asked.key_columns(rows, T)
        if columns.size == 0:
            continue
        block = run(lambda rows=rows, columns=columns: asked.block_mask(rows, columns))
        found = True if block is None else to_numpy(block)
        cut = [of_rows[:, span.start : span.stop] for span in spans_of(columns)]
        expected = np.concatenate(cut, axis=1)
        np.testing.assert_array_equal(
            np.broadcast_to(found, (1, 1, *expected.shape))[0, 0], expected
        )


def test_hidden_blocks_are_skipped_and_visible_blocks_get_no_mask():
    sinks = AttentionMask(**rule_fields(causal & (window | PrefixMask(4)), False, None))
    columns = sinks.key_columns(Span(49, 7), T)
    assert columns == KeySpans((Span(0, 4), Span(43, 13)))
    assert not sinks.masks_positions(Span(49, 7), Span(0, 4))
    chunks = AttentionMask(**rule_fields(causal & ChunkMask(8), False, None))
    assert chunks.key_spans(Span(48, 4), T) == (Span(48, 4),)
    assert not chunks.masks_positions(Span(52, 4), Span(48, 4))
    blocks = AttentionMask(**rule_fields(BlockMask(BLOCKS, 9), False, None))
    assert blocks.key_spans(Span(18, 9), T) == ()


def test_a_plain_rule_takes_the_path_of_its_argument():
    fields = rule_fields(causal & WindowMask(5) & WindowMask(7), False, None)
    assert fields == {"causal": True, "window": 5, "further_rules": ()}
    assert rule_fields(WindowMask(9), True, 4) == {
        "causal": True,
        "window": 4,
        "further_rules": (),
    }
    one_sided = AttentionMask(**rule_fields(WindowMask(5, 1), False, None))
    assert one_sided.is_band
    assert one_sided.is_causal
    assert AttentionMask(**rule_fields(causal | PrefixMask(3), False, None)).lookahead == 3


SETS = st.lists(st.tuples(st.integers(-9, 9), st.integers(0, 5)), max_size=5)


def as_set(found):
    return {x for x in range(-20, 25) if any(start <= x < stop for start, stop in found)}


@given(first=SETS, second=SETS)
@settings(max_examples=100)
def test_intervals_are_sets(first, second):
    one, two = (intervals.union(tuple((a, a + n) for a, n in x if n), ()) for x in (first, second))
    every = set(range(-20, 25))
    assert as_set(intervals.union(one, two)) == as_set(one) | as_set(two)
    assert as_set(intervals.intersection(one, two)) == as_set(one) & as_set(two)
    assert as_set(intervals.complement(one)) == every - as_set(one)


# The objects ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MASKS)
def test_a_config_makes_the_same_mask(name):
    mask = MASKS[name][0]
    config = keras.saving.serialize_keras_object(mask)
    again = as_mask("mask", config)
    assert again == mask
    assert hash(again) == hash(mask)
    assert repr(again) == repr(mask)


def test_masks_print_what_they_were_made_of():
    mask = causal & (WindowMask(8, 1) | PrefixMask(2)) & ~(DilatedMask(2) | ChunkMask(3))
    assert repr(mask) == (
        "CausalMask() & (WindowMask(8, 1) | PrefixMask(2)) & ~(DilatedMask(2) | ChunkMask(3))"
    )
    assert repr(BlockMask(BLOCKS, 9)) == "BlockMask(<7 x 7 matrix>, 9)"
    assert repr(MaskFunction(near_or_early)) == "MaskFunction(near_or_early)"
    assert ~~mask == mask
    assert causal & causal == causal


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WindowMask(0), "`before` must be a positive integer. Received: before=0"),
        (lambda: WindowMask(3, 2.5), "`after` must be a positive integer"),
        (lambda: ChunkMask(True), "`size` must be a positive integer"),
        (lambda: PrefixMask(-1), "`n` must be a positive integer"),
        (lambda: DilatedMask("2"), "`step` must be a positive integer"),
        (lambda: BlockMask([[1, 2]], 3), r"`matrix` must .* shape \(1, 2\)"),
        (lambda: BlockMask([1, 0], 3), r"`matrix` must .* shape \(2,\)"),
        (lambda: MaskFunction(3), "`function` must be a function"),
    ],
)
def test_errors_name_the_argument(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_masks_are_combined_with_operators_only():
    with pytest.raises(TypeError, match="Combine masks with `&`"):
        bool(causal)
    with pytest.raises(TypeError):
        causal & np.ones((3, 3), bool)


def test_a_function_must_return_booleans():
    given = problem(mask_fields={"further_rules": (MaskFunction(lambda q, k: q - k),)})
    inputs = {name: tensor(x) for name, x in given.trainable().items()}
    with pytest.raises(ValueError, match="must return booleans"):
        given.attend(**inputs, implementation="plain")
