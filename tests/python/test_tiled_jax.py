"""The loops over tiles that JAX takes on a CPU, with tiles smaller than the problems."""

import numpy as np
import pytest

from kerasattention.attend import choice
from problems import PROBLEMS, problem
from test_attend import check

ROWS = 3


@pytest.fixture
def tiles(monkeypatch):
    """3 queries by 5 keys: several of each, none of which divides 13 or 17."""
    from kerasattention.attend import tiled_jax

    blocked = choice.WAYS["blocked"]
    monkeypatch.setitem(choice.WAYS, "blocked", lambda given: blocked(given, size=ROWS))
    monkeypatch.setattr(tiled_jax, "COLUMNS", 5)
    return tiled_jax


def visible(**options):
    return problem(T=61, S=61, visibility=options)


LONGER = {
    "causal": visible(causal=True),
    "causal, from an offset": problem(T=37, S=61, visibility={"causal": True, "offset": 23}),
    "window wider than a tile": visible(causal=True, window=23),
    "two-sided window wider than a tile": visible(window=23),
    "narrow window": visible(causal=True, window=3),
    "whole tiles": problem(T=30, S=35),
    "more queries than keys, window": problem(T=61, S=17, visibility={"window": 4}),
    "padding, window": visible(
        causal=True, window=23, key_mask=np.arange(61) < np.array([[61], [7]])
    ),
}
# Every tensor that has samples, and what depends on their number.
SAMPLES = [
    "positions of each sample",
    "positions of all",
    "padded queries and keys, causal",
    "segments, causal",
    "mask (T, S)",
    "mask (B, N, T, S), padding, causal",
    "bias (T, S)",
    "dropout, window, causal",
    "sink, empty rows",
]
TABLE = PROBLEMS | {f"long, {name}": given for name, given in LONGER.items()}


@pytest.mark.parametrize("name", TABLE)
def test_tiles(name, tiles):
    check(TABLE[name], implementation="blocked")


@pytest.mark.parametrize("name", SAMPLES)
def test_sample_by_sample(name, tiles, monkeypatch):
    monkeypatch.setattr(tiles, "TILE_LOGITS", 1)
    check(TABLE[name], implementation="blocked")
