"""The loops over tiles that JAX takes on a CPU, with tiles smaller than the problems."""

import re

import numpy as np
import pytest

import kerasattention
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


def test_no_block_copies_all_queries():
    # The gradients of queries take the places of the queries. XLA copies all of them in each
    # block, a time quadratic in T, unless what reads a block's queries comes before the last write.
    import jax

    batch, length, heads, kv_heads, size = 1, 1024, 6, 2, 24
    rng = np.random.default_rng(0)
    query, key, value = (
        rng.standard_normal((batch, length, n, size), dtype="float32")
        for n in (heads, kv_heads, kv_heads)
    )

    def loss(query, key, value):
        return kerasattention.scaled_dot_product_attention(
            query, key, value, causal=True, sliding_window=48
        ).sum()

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    program = gradient.lower(query, key, value).compile().as_text()
    bodies = set(re.findall(r"body=%([\w.-]+)", program))
    queries = re.escape(f"f32[{batch},{kv_heads},{heads // kv_heads},{length},{size}]")
    found = {name: text for name, text in computations(program) if name in bodies}
    assert sum(bool(re.search(queries, text)) for text in found.values()) >= 2  # both passes
    copies = [line for text in found.values() for line in re.findall(rf"{queries}\S* copy.*", text)]
    assert not copies


def computations(program):
    """The name and the text of each computation of a program of XLA."""
    return re.findall(r"^%([\w.-]+) \(.*?\{\n(.*?)^\}", program, flags=re.MULTILINE | re.DOTALL)
