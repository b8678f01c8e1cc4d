"""The loops over tiles that torch takes, with tiles smaller than the problems."""

import pytest

from kerasattention.attend import registry
from kerasattention.attend.kernels.torch import tiled as tiled_torch
from problems import TILED
from test_attend import check

ROWS = 3


@pytest.fixture(autouse=True)
def tiles(monkeypatch):
    """3 queries by 5 keys: several of each, none of which divides 13 or 17."""
    blocked = registry.WAYS["blocked"]
    monkeypatch.setitem(registry.WAYS, "blocked", lambda given: blocked(given, size=ROWS))
    monkeypatch.setattr(tiled_torch, "TILE_LOGITS", 1)
    monkeypatch.setattr(tiled_torch, "LEAST_COLUMNS", 5)


@pytest.mark.parametrize("name", TILED)
def test_tiles(name):
    check(TILED[name], implementation="blocked")
