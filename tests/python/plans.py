"""Which kernel and which blocks the engine picks for a problem, as text to compare.

The golden files under `golden/` hold these texts. They are the same before and after a change of
the code's structure; this module is the adapter to the structure of the day.
"""

import keras
import numpy as np

from backends import BACKEND, tensor
from kerasattention.attend import api, registry
from kerasattention.attend.bias import TensorBias
from kerasattention.attend.mask import AttentionMask


def describe(given, dtype="float32", unknown_length=False):
    """The kernel's name and its blocks, for a problem of `problems.py`."""
    if BACKEND == "jax":
        import jax

        found = []
        jax.eval_shape(lambda: found.append(_describe(given, dtype)))
        return found[0]
    if BACKEND == "tensorflow":
        return _in_graph(given, dtype, unknown_length)
    return _describe(given, dtype)


def _in_graph(given, dtype, unknown_length):
    """As a graph: what `fit()` runs."""
    import tensorflow as tf

    found = []
    unknown = tf.TensorSpec([None, None, None, None], dtype)

    def trace(query, key, value):
        for x, like in ((query, given.query), (key, given.key), (value, given.value)):
            x.set_shape([like.shape[0], None if unknown_length else like.shape[1], *like.shape[2:]])
        found.append(_describe(given, dtype, (query, key, value)))
        return query

    tf.function(trace, input_signature=[unknown] * 3).get_concrete_function()
    return found[0]


def _describe(given, dtype, inputs=None):
    if inputs is None:
        arrays = (given.query, given.key, given.value)
        inputs = [keras.ops.cast(tensor(x, "float32"), dtype) for x in arrays]
    described = {
        name: tensor(x) if isinstance(x, np.ndarray) else x for name, x in given.visibility.items()
    }
    if "mask" in described:
        described["mask"] = api.expand_mask(described["mask"], "mask")
    bias = None if given.bias is None else api.expand_mask(tensor(given.bias), "bias")
    problem = api.make_inputs(
        *inputs,
        AttentionMask(**described),
        biases=[] if bias is None else [TensorBias(bias)],
        scale=given.scale,
        soft_cap=given.cap,
        sink=None if given.sink is None else tensor(given.sink),
        rate=given.rate,
        seed=tensor(np.array([1, 2]), "int32") if given.rate else None,
    )
    way = registry.select_kernel(problem, None, never_hold_scores=False)
    name = {way: name for name, way in registry.WAYS.items()}[way]
    blocks = {"plain": lambda problem: "", "fused": _fused, "blocked": _blocked}[name](problem)
    return f"{name} {blocks}".strip()


def _fused(problem):
    from kerasattention.attend import tiling
    from kerasattention.attend.kernels.torch import cpu_flash as fused_torch

    if fused_torch._is_public(problem):
        return "one call"
    planned = tiling.plan_kernel_calls(problem.widened(), broadcasts=True)
    return _runs((p.rows, p.columns, p.count, p.causal) for p in planned)


def _blocked(problem):
    return {"torch": _torch_tiles, "jax": _jax_tile, "tensorflow": _tensorflow_blocks}[BACKEND](
        problem
    )


def _torch_tiles(problem):
    from kerasattention.attend.kernels import blocked
    from kerasattention.attend.kernels.torch import tiled as tiled_torch

    tiles = tiled_torch.plan_query_blocks(problem.scaled(), blocked.BLOCK_SIZE)
    return _runs((t.rows, c, 1, False) for t in tiles for c in t.columns)


def _jax_tile(problem):
    from kerasattention.attend.kernels import blocked
    from kerasattention.attend.kernels.jax import tiled as tiled_jax

    tile = tiled_jax.choose_tile_size(problem.scaled(), blocked.BLOCK_SIZE)
    each = ", sample by sample" if tile.by_sample else ""
    return f"tile {tile.rows} x {tile.columns}{each}"


def _tensorflow_blocks(problem):
    from kerasattention.attend.kernels.tensorflow import blocked, unrolled
    from kerasattention.attend.tensors import is_static

    problem = problem.scaled()
    if is_static(problem.query.shape[3], problem.key.shape[2]):
        for size in blocked._block_sizes(problem, None):
            planned = unrolled.plan_strided_blocks(problem, size)
            if len(planned) <= blocked.MAX_UNROLLED_BLOCKS:
                groups = [span.size for span in unrolled.plan_head_groups(problem)]
                runs = _runs((p.rows, p.columns, p.count, False) for p in planned)
                return f"unrolled, head groups {groups}: {runs}"
    return f"loop of blocks of {blocked.LOOP_BLOCK_SIZE}"


def _runs(blocks):
    """The number of blocks, then the first and the last three."""
    texts = [
        f"{rows.size}@{rows.start} x {columns.size}@{columns.start}"
        + (f" * {count}" if count > 1 else "")
        + (" causal" if triangle else "")
        for rows, columns, count, triangle in blocks
    ]
    shown = texts if len(texts) <= 6 else [*texts[:3], "...", *texts[-3:]]
    return f"{len(texts)}: " + "; ".join(shown)
