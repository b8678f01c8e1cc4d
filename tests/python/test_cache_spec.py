"""The layout of caches: slots, sizes, and the position that each slot holds."""

import numpy as np
import pytest

from backends import tensor, to_numpy
from kerasattention.decoding.cache.spec import (
    SLOT_AXES,
    CacheSpec,
    from_cache,
    latest_positions,
    to_cache,
)

B, S, K, H = 2, 5, 3, 7


def spec(**changes):
    fields = {"layer": "a", "kv_heads": K, "key_size": H, "value_size": 11, "dtype": "float32"}
    return CacheSpec(**{**fields, "window": None, "cross": False, "masked": False, **changes})


@pytest.mark.parametrize(
    ("window", "slots", "rolls"), [(None, 13, False), (5, 5, True), (13, 13, True), (17, 13, False)]
)
def test_a_window_that_is_no_longer_than_the_rows_rolls(window, slots, rolls):
    assert spec(window=window).slots(13) == slots
    assert spec(window=window).rolls(13) is rolls


def test_shapes_leave_out_axes_of_size_one_and_caches_of_other_inputs():
    shapes = spec(masked=True).shapes(B, S)
    assert shapes["value"] == ((B, K, S, 11), "float32")
    assert sorted(shapes["key"][0]) == sorted((B, K, S, H))
    assert shapes["key"][0][SLOT_AXES["key"]] == S
    assert shapes["mask"] == ((B, S), "bool")
    assert spec(kv_heads=1).shapes(1, S)["value"] == ((S, 11), "float32")
    assert spec(cross=True).shapes(B, S) == {}


@pytest.mark.parametrize("name", ["key", "value"])
@pytest.mark.parametrize(("batch", "heads"), [(B, K), (1, K), (B, 1), (1, 1)])
def test_the_layout_of_a_cache_can_be_undone(name, batch, heads):
    x = np.random.default_rng(1).normal(size=(batch, S, heads, H)).astype("float32")
    kept = to_cache(name, tensor(x))
    expected = spec(kv_heads=heads, value_size=H).shapes(batch, S)[name][0]
    assert tuple(kept.shape) == expected
    np.testing.assert_array_equal(to_numpy(from_cache(name, kept, heads)), x)


@pytest.mark.parametrize("last", [0, 2, 4, 5, 12])
def test_a_slot_holds_the_latest_position_that_was_put_there(last):
    slots = 5
    held = np.full(slots, -1)
    for position in range(last + 1):
        held[position % slots] = position
    found = to_numpy(latest_positions(slots, last))
    np.testing.assert_array_equal(np.where(found < 0, -1, found), held)


def test_axes_name_what_may_be_split():
    many, one = spec(masked=True), spec(kv_heads=1)
    for name, (shape, _) in many.shapes(B, 8).items():
        assert len(many.axes(name, B)) == len(shape)
    assert many.axes("key", B) == ("batch", "key_heads", None, None)
    assert many.axes("value", 1) == ("key_heads", None, None)
    assert many.axes("mask", B) == ("batch", None)
    assert one.axes("key", B) == ("batch", None, None)
    assert one.axes("value", 1) == (None, None)
