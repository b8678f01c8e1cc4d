"""Which blocks a ring of devices computes, and how often keys and values travel."""

import pytest

from kerasattention.attend.kernels.jax.ring_plan import HIDDEN, Variant, ring_plan
from kerasattention.attend.mask import AttentionMask
from kerasattention.masks.join import rule_fields
from kerasattention.masks.kinds import CausalMask, ChunkMask, DilatedMask


def shifts(plan):
    """The shift of each step, and the devices that keys and values go before it."""
    found = []
    for steps in plan.steps:
        found += [(steps.first + i * steps.hop, steps.hop) for i in range(steps.count)]
    return found


def computed(plan):
    return int((plan.table != HIDDEN).sum())


def test_a_causal_ring_computes_the_blocks_up_to_the_diagonal():
    plan = ring_plan(AttentionMask(causal=True), 7, 4)
    assert [plan.variants[x] for x in plan.table[2]] == [
        *(Variant(False), Variant(False), Variant(True, 0), plan.variants[HIDDEN])
    ]
    assert computed(plan) == 10
    assert shifts(plan) == [(0, 0), (1, 1), (2, 1), (3, 1)]
    # The first step is that of the diagonal, the others one loop.
    assert [(steps.count, len(steps.variants)) for steps in plan.steps] == [(1, 1), (3, 2)]
    # With 8 devices: 28 whole blocks, and 8 whose own tiles above the diagonal are left out.
    plan = ring_plan(AttentionMask(causal=True), 2048, 8)
    assert computed(plan) == 36
    assert computed(plan) / 64 <= 0.6


def test_without_rules_all_blocks_are_one_loop():
    plan = ring_plan(AttentionMask(), 7, 5)
    assert computed(plan) == 25
    assert [(steps.hop, steps.count) for steps in plan.steps] == [(0, 1), (1, 4)]
    assert {plan.variants[x] for x in plan.table.flat} == {Variant(False)}


@pytest.mark.parametrize(("window", "steps"), [(1, 1), (2, 2), (8, 2), (9, 3), (15, 3), (16, 4)])
def test_a_window_takes_no_more_steps_than_it_reaches(window, steps):
    plan = ring_plan(AttentionMask(causal=True, window=window), 7, 6)
    assert len(shifts(plan)) == steps <= -(-(window - 1) // 7) + 1
    assert all(hop <= 1 for _, hop in shifts(plan))


def test_a_window_on_both_sides_jumps_over_what_it_does_not_reach():
    plan = ring_plan(AttentionMask(window=5), 7, 6)
    assert shifts(plan) == [(0, 0), (1, 1), (5, 4)]
    assert plan.last_shift == 5
    offsets = {plan.variants[x].offset for x in plan.table.flat if x != HIDDEN}
    assert offsets == {-7, 0, 7}
    assert computed(plan) == 6 + 5 + 5


def test_rules_of_places_keep_blocks_apart():
    # Chunks of 14 are two blocks of 7: nothing goes beyond, in either direction.
    plan = ring_plan(AttentionMask(**rule_fields(ChunkMask(14), False, None)), 7, 6)
    assert computed(plan) == 12
    assert shifts(plan) == [(0, 0), (1, 1), (5, 4)]
    aligned = ring_plan(AttentionMask(**rule_fields(ChunkMask(7), False, None)), 7, 6)
    assert shifts(aligned) == [(0, 0)]
    dilated = rule_fields(DilatedMask(3) & CausalMask(), False, None)
    plan = ring_plan(AttentionMask(**dilated), 7, 4)
    assert computed(plan) == 10
    assert {plan.variants[x] for x in plan.table.flat if x} == {Variant(True)}


def test_positions_that_are_tensors_leave_nothing_out():
    plan = ring_plan(AttentionMask(causal=True, query_positions=[3], key_positions=[4]), 7, 4)
    assert computed(plan) == 16


def test_a_mask_without_any_key_has_no_step():
    plan = ring_plan(AttentionMask(causal=True, offset=-28), 7, 4)
    assert plan.steps == ()
    assert plan.last_shift == 0
