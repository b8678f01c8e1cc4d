"""The loops over tiles that JAX takes on a CPU, with tiles smaller than the problems."""

import pytest

from problems import TILED, kernel
from test_attend import check


def tiles(**options):
    """3 queries by 5 keys: several of each, none of which divides 13 or 17."""

    def run(inputs, block_size):
        # JAX is not there on other backends, which collect this file's names only.
        from kerasattention.attend.kernels.jax import tiled

        return tiled.tiled_attention(
            inputs, tile=tiled.choose_tile_size(inputs.scaled(), 3, columns=5, **options)
        )

    return kernel(run)


# Every tensor that has samples, and what depends on their number: all at once has the rest.
SAMPLES = ["positions of each sample", "positions of all", "mask (T, S)", "bias (T, S)"]
SAMPLES += ["all at once"]


@pytest.mark.parametrize("name", TILED)
def test_tiles(name):
    check(TILED[name], implementation=tiles())


@pytest.mark.parametrize("name", SAMPLES)
def test_sample_by_sample(name):
    check(TILED[name], implementation=tiles(tile_logits=1))
