"""Which numbers of devices heads can be split over, and which axes they get."""

import numpy as np
import pytest

from kerasattention.distribution.split_heads import (
    HeadSplit,
    can_split,
    check_split,
    largest_split,
)


def lines_up(n, key_value_heads, query_heads):
    """Whether each of n devices has the key/value heads of its query heads, by counting."""
    first = np.gcd(key_value_heads, n)
    if query_heads % n:
        return False
    query = np.split(np.arange(query_heads) * key_value_heads // query_heads, n)
    parts = n if key_value_heads % n == 0 else first
    key = np.split(np.arange(key_value_heads), parts)
    key = [key[device * parts // n] for device in range(n)]
    return all(set(q) <= set(k) for q, k in zip(query, key, strict=True))


def test_heads_line_up_wherever_a_split_is_allowed():
    for key_value_heads in range(1, 13):
        for group in range(1, 9):
            for n in (1, 2, 3, 4, 6, 8):
                heads = key_value_heads * group
                if can_split(n, key_value_heads, heads):
                    assert lines_up(n, key_value_heads, heads), (n, key_value_heads, heads)
                elif heads % n == 0:
                    whole = key_value_heads % n and n % key_value_heads
                    assert whole or not lines_up(n, key_value_heads, heads)


@pytest.mark.parametrize(
    ("model", "query_heads", "key_value_heads", "best"),
    [
        ("Llama-3-8B", 32, 8, 8),
        ("Llama-3-70B", 64, 8, 8),
        ("Qwen2-7B", 28, 4, 4),
        ("40", 40, 10, 2),
    ],
)
def test_published_models_on_8_devices(model, query_heads, key_value_heads, best):
    assert largest_split(8, key_value_heads, query_heads) == best, model
    assert can_split(best, key_value_heads, query_heads)


def test_the_refusal_names_the_heads_and_what_can_be_done():
    with pytest.raises(
        ValueError, match="10 key/value heads of 4 query heads each cannot be split"
    ) as e:
        check_split(8, 10, 40)
    assert str(e.value).endswith("over 8 devices without gathering; model = 2 can")
    with pytest.raises(ValueError, match=r"4 key/value heads of 7 query heads each \(layer 'b0'\)"):
        check_split(8, 4, 28, "b0")
    with pytest.raises(ValueError, match=r"1 key/value head of 3 query heads each .*model = 1 can"):
        check_split(2, 1, 3)
    check_split(8, 4)  # some numbers of query heads could do


def noted(split, *layers):
    for name, query_heads, key_value_heads in layers:
        split.note(f"{name}/query/kernel", (7, query_heads, 3))
        split.note(f"{name}/key/kernel", (7, key_value_heads, 3))
    return split


@pytest.mark.parametrize(
    ("layers", "sizes"),
    [
        ([("a", 8, 8)], (8, 1)),
        ([("a", 8, 2)], (2, 4)),
        ([("a", 8, 1)], (1, 8)),
        ([("a", 16, 16), ("b", 8, 4)], (4, 2)),
        ([("a", 8, 4), ("b", 16, 16), ("c", 8, 1)], (4, 2)),
        ([("a", 8, 1), ("b", 8, 2)], (2, 4)),
    ],
)
def test_the_axes_follow_the_layers(layers, sizes):
    assert noted(HeadSplit(8, None), *layers).sizes == sizes


def test_layers_that_need_different_axes_are_refused():
    with pytest.raises(
        ValueError, match=r"'a' and 'b' with 2 and 4 key/value heads .*model = 2 can"
    ):
        noted(HeadSplit(8, None), ("a", 8, 2), ("b", 8, 4))
    with pytest.raises(ValueError, match="a mesh for 2 key/value heads, and layer 'x/b' with 4"):
        noted(HeadSplit(8, 2), ("x/b", 8, 4))
    with pytest.raises(ValueError, match="layer 'a'"):
        noted(HeadSplit(8, None), ("a", 28, 4))


def test_a_layer_is_known_by_its_kernels():
    split = noted(HeadSplit(4, None), ("m/a", 8, 4))
    assert split.has_layer_of("m/a/sink")
    assert split.has_layer_of("m/a/key/bias")
    assert split.has_layer_of("m/a/relative_position/table")
    assert not split.has_layer_of("m/sink")
    assert not split.has_layer_of("sink")
    noted(split, ("b", 8, 4))
    assert not split.has_layer_of("c/sink")
    # A `Dense` of that name has no heads.
    split.note("d/query/kernel", (7, 5))
    assert not split.has_layer_of("d/query/bias")
