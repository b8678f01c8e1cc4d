"""A rule that no kernel knows, through every kernel against the float64 reference."""

import dataclasses
import itertools

import numpy as np
import pytest
from keras import ops

from backends import BACKEND, sampled
from kerasattention.attend import registry
from kerasattention.attend.rules import MaskRule, Reach
from problems import kernel, problem
from test_attend import check


@dataclasses.dataclass(frozen=True)
class ChunkRule(MaskRule):
    """Tokens see those of their own chunk of positions."""

    size: int

    argument = "chunks"

    @property
    def reach(self):
        return Reach(self.size - 1, self.size - 1)

    def block_mask(self, positions, rows, columns):
        queries, keys = positions.block_positions(rows, columns)
        return ops.equal(queries // self.size, keys // self.size)


@dataclasses.dataclass(frozen=True)
class PrefixRule(MaskRule):
    """The first tokens are visible to all others; other pairs never are."""

    count: int

    argument = "prefix"

    def block_mask(self, positions, rows, columns):
        queries, keys = positions.block_positions(rows, columns)
        return ops.logical_and(keys < self.count, queries >= -1)


T, CHUNK, PREFIX = 61, 11, 7
Q, K = np.arange(T)[:, None], np.arange(T)[None]
PADDING = np.arange(T) < np.array([[T], [23]])


def made(rules, table, **fields):
    """A problem whose table of visible pairs is written down here."""
    given = problem(T=T, S=T, mask_fields={"further_rules": rules, **fields})
    given.__dict__["seen"] = np.broadcast_to(table, given.shape)
    return given


GIVEN = {
    "chunks": made((ChunkRule(CHUNK),), Q // CHUNK == K // CHUNK),
    "chunks, causal, padding": made(
        (ChunkRule(CHUNK),),
        (Q // CHUNK == K // CHUNK) & (K <= Q) & PADDING[:, None, None, :],
        causal=True,
        key_mask=PADDING,
    ),
    "prefix, window": made((PrefixRule(PREFIX),), (K < PREFIX) & (abs(Q - K) < 13), window=13),
}


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


IMPLEMENTATIONS = {"chosen": None, "plain": "plain", "blocked": "blocked", "tiles": kernel(tiles)}


# Each kernel with some rule, and each rule through the tiles.
ON_JAX = [(name, "tiles") for name in GIVEN]
ON_JAX += [("prefix, window", "plain"), ("chunks, causal, padding", "chosen")]


@pytest.mark.parametrize(
    ("name", "implementation"), sampled(itertools.product(GIVEN, IMPLEMENTATIONS), ON_JAX)
)
def test_every_kernel_obeys_a_new_rule(name, implementation):
    check(GIVEN[name], implementation=IMPLEMENTATIONS[implementation], block_size=7)


def test_every_row_of_the_table_has_a_name_of_its_own():
    names = [row.name for row in registry.KERNELS]
    assert len(set(names)) == len(names)
