"""The loops over tiles that JAX takes on a CPU, with tiles smaller than the problems."""

import pytest

from kerasattention.attend import registry
from problems import TILED
from test_attend import check

ROWS = 3


@pytest.fixture
def tiles(monkeypatch):
    """3 queries by 5 keys: several of each, none of which divides 13 or 17."""
    from kerasattention.attend.kernels.jax import tiled as tiled_jax

    blocked = registry.WAYS["blocked"]
    monkeypatch.setitem(registry.WAYS, "blocked", lambda given: blocked(given, size=ROWS))
    monkeypatch.setattr(tiled_jax, "COLUMNS", 5)
    return tiled_jax


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


@pytest.mark.parametrize("name", TILED)
def test_tiles(name, tiles):
    check(TILED[name], implementation="blocked")


@pytest.mark.parametrize("name", SAMPLES)
def test_sample_by_sample(name, tiles, monkeypatch):
    monkeypatch.setattr(tiles, "TILE_LOGITS", 1)
    check(TILED[name], implementation="blocked")
