"""The mask of each block against the table of the rules, written down one pair at a time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kerasattention as ka
import reference
from backends import run, tensor, to_numpy
from kerasattention.attend.api import expand_mask
from kerasattention.attend.mask import AttentionMask
from kerasattention.attend.tensors import Span
from problems import PROBLEMS, B, N, S, T

ROWS = [Span(0, T), Span(0, 1), Span(3, 5), Span(T - 2, 2)]
COLUMNS = [Span(0, S), Span(0, 3), Span(4, 7), Span(S - 1, 1)]
# The rows of padded queries are zeroed in the output; the masks of blocks do not hold them.
NOT_IN_BLOCKS = "query_mask"


def described(fields):
    fields = {name: tensor(x) if isinstance(x, np.ndarray) else x for name, x in fields.items()}
    if "mask" in fields:
        fields["mask"] = expand_mask(fields["mask"], "mask")
    return AttentionMask(**fields)


def cut(table, rows, columns):
    return table[..., rows.start : rows.stop, columns.start : columns.stop]


def names_with_masks():
    return [
        name
        for name, problem in PROBLEMS.items()
        if problem.mask_fields
        and NOT_IN_BLOCKS not in problem.mask_fields
        and problem.shape[2:] == (T, S)
    ]


@pytest.mark.parametrize("name", names_with_masks())
def test_every_block_is_cut_from_the_same_table(name):
    problem = PROBLEMS[name]
    mask = described(problem.mask_fields)
    pairs = [(rows, columns) for rows in ROWS for columns in COLUMNS]
    # None where all is visible.
    blocks = run(lambda: [mask.block_mask(rows, columns) for rows, columns in pairs])
    for (rows, columns), block in zip(pairs, blocks, strict=True):
        expected = cut(problem.seen, rows, columns)
        found = True if block is None else to_numpy(block)
        np.testing.assert_array_equal(np.broadcast_to(found, expected.shape), expected)


LENGTHS = st.integers(1, 23)
RULES = {
    "causal": st.booleans(),
    "window": st.none() | st.integers(1, 25),
    "offset": st.integers(0, 11),
}


@given(length=LENGTHS, keys=LENGTHS, data=st.data(), **RULES)
@settings(max_examples=300)
def test_ranges_of_keys_are_exact(length, keys, causal, window, offset, data):
    """No query sees a key outside its range, and masks are asked for where they mask out a key."""
    start = data.draw(st.integers(0, length - 1))
    rows = Span(start, data.draw(st.integers(1, length - start)))
    mask = AttentionMask(causal=causal, window=window, offset=offset)
    columns = mask.key_range(rows, keys)
    table = reference.visible(
        1,
        1,
        length,
        keys,
        causal=causal,
        window=window,
        query_positions=np.arange(length)[np.newaxis] + offset,
        key_positions=np.arange(keys)[np.newaxis],
    )[0, 0]
    wanted = np.flatnonzero(table[rows.start : rows.stop].any(axis=0))
    if len(wanted) == 0:
        assert columns.size == 0
        return
    assert (columns.start, columns.stop) == (wanted[0], wanted[-1] + 1)
    masks_out = not cut(table, rows, columns).all()
    assert mask.masks_positions(rows, columns) == masks_out
    if not mask.may_mask_out_all_keys:
        assert table.any(axis=1).all()


@pytest.mark.parametrize("name", [n for n, p in PROBLEMS.items() if p.mask_fields])
def test_empty_rows_are_announced(name):
    problem = PROBLEMS[name]
    fields = {k: v for k, v in problem.mask_fields.items() if k != NOT_IN_BLOCKS}
    if not described(fields).may_mask_out_all_keys:
        assert problem.seen.any(axis=-1).all()


def test_tensors_can_be_exchanged_by_name():
    fields = PROBLEMS["all at once"].mask_fields
    mask = described(fields)
    named = mask.tensors()
    assert set(named) == {name for name, x in fields.items() if isinstance(x, np.ndarray)}
    named["mask"] = tensor(np.zeros((1, 1, T, S), dtype=bool))
    changed = mask.with_tensors(named)
    assert not to_numpy(changed.block_mask(Span(0, T), Span(0, S))).any()
    assert changed.causal
    assert changed.window == fields["window"]


def test_distances_are_key_less_query_position():
    mask = AttentionMask(offset=2)
    found = to_numpy(mask.distances(Span(1, 2), Span(3, 3)))
    assert found.tolist() == [[[[0, 1, 2], [-1, 0, 1]]]]
    positions = tensor(np.array([[5, 9], [0, 1]]), "int32")
    of_samples = AttentionMask(query_positions=positions, key_positions=positions)
    found = to_numpy(of_samples.distances(Span(0, 2), Span(1, 1)))
    assert found.tolist() == [[[[4], [0]]], [[[1], [0]]]]


def test_a_block_without_rules_needs_no_mask():
    assert AttentionMask().block_mask(Span(0, T), Span(0, S)) is None
    below_the_diagonal = AttentionMask(causal=True).block_mask(Span(8, 3), Span(0, 8))
    assert below_the_diagonal is None
    mask = expand_mask(tensor(np.ones((N, T, S), dtype=bool)), "mask")
    assert AttentionMask(mask=mask).block_mask(Span(0, 2), Span(0, 2)) is not None


def test_the_usual_window_of_rules_is_found_by_looking_at_blocks():
    rule = ka.WindowMask(64) | ka.PrefixMask(2)
    mask = AttentionMask(causal=True, further_rules=(rule,))
    assert 60 < mask.usual_window(4096, 4096) < 140
    assert mask.usual_window(None, None) is None  # of no known length
    assert mask.usual_window(96, 96) is None  # most keys are visible
    assert AttentionMask(causal=True, window=64).usual_window(4096, 4096) == 64


def test_what_the_axes_of_its_tensors_count():
    ones = tensor(np.ones((B, T), "int32"))
    mask = AttentionMask(query_positions=ones, key_positions=ones[0], key_mask=ones)
    assert mask.axes("mask") == ("batch", "heads", None, None)
    assert mask.axes("query_positions") == ("batch", "tokens")
    assert mask.axes("key_positions") == ("tokens",)
    assert mask.axes("key_mask") == ("batch", "tokens")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"causal": True},
        {"causal": True, "offset": -2},
        {"causal": True, "window": 3},
        {"causal": True, "window": 3, "offset": 4},
        {"window": 2, "offset": -3},
    ],
    ids=str,
)
def test_rows_that_may_see_no_key_are_those_that_see_none(fields):
    """Only a causal rule without a window is not asked which of the rows they are."""
    mask, keys = AttentionMask(**fields), 7
    visible = mask.block_mask(Span(0, 11), Span(0, keys))
    seen = np.ones(11, bool) if visible is None else to_numpy(visible)[0, 0].any(-1)
    for start in range(11):
        for size in range(1, 12 - start):
            empty = not seen[start : start + size].all()
            expected = empty or fields == {"causal": True, "offset": -2}
            assert mask.may_leave_empty(Span(start, size), keys) == expected, (start, size)
    assert AttentionMask(key_mask=tensor(np.ones((1, keys), bool))).may_leave_empty(Span(0, 1), 7)


def test_an_offset_that_is_a_tensor_becomes_the_positions_of_queries():
    mask = AttentionMask(causal=True, offset=tensor(np.array(5, "int32")))
    found = mask.with_explicit_positions(Span(0, 3))
    assert to_numpy(found.query_positions).tolist() == [5, 6, 7]
    assert found.offset == 0
    assert found.causal
    known = AttentionMask(causal=True, offset=5)
    assert known.with_explicit_positions(Span(0, 3)) is known


def test_only_positions_leaves_out_what_tokens_have():
    ones = tensor(np.ones((B, T), "int32"))
    whole = tensor(np.ones((1, 1, T, T), bool))
    mask = AttentionMask(
        causal=True, window=3, mask=whole, key_mask=ones, query_segments=ones, key_segments=ones
    )
    assert mask.only_positions() == AttentionMask(causal=True, window=3)
    spans = AttentionMask(causal=True, query_bidirectional=ones, key_bidirectional=ones)
    assert spans.only_positions() == AttentionMask()  # which a span lifts
