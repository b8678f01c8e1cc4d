"""The loops over tiles that torch takes, with tiles smaller than the problems."""

import pytest

from kerasattention.attend.kernels.torch import tiled as tiled_torch
from problems import TILED, kernel
from test_attend import check

# 3 queries by 5 keys: several of each, none of which divides 13 or 17.
TILES = kernel(lambda inputs, block_size: tiled_torch.tiled_attention(inputs, 3, tile_keys=5))


@pytest.mark.parametrize("name", TILED)
def test_tiles(name):
    check(TILED[name], implementation=TILES)
