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

    traced = tf.function(trace, input_signature=[unknown] * 3, autograph=False)
    traced.get_concrete_function()
    return found[0]


def _describe(given, dtype, inputs=None):
    if inputs is None:
        arrays = (given.query, given.key, given.value)
        inputs = [keras.ops.cast(tensor(x, "float32"), dtype) for x in arrays]
    described = {
        name: tensor(x) if isinstance(x, np.ndarray) else x for name, x in given.mask_fields.items()
    }
    if "mask" in described:
        described["mask"] = api.expand_mask(described["mask"], "mask")
    bias = None if given.bias is None else api.expand_mask(tensor(given.bias), "bias")
    inputs = api.make_inputs(
        *inputs,
        AttentionMask(**described),
        biases=[] if bias is None else [TensorBias(bias)],
        scale=given.scale,
        soft_cap=given.cap,
        sink=None if given.sink is None else tensor(given.sink),
        rate=given.rate,
        seed=tensor(np.array([1, 2]), "int32") if given.rate else None,
    )
    kernel = registry.select_kernel(inputs)
    return f"{kernel.implementation} {BLOCKS.get(kernel.name, lambda inputs: '')(inputs)}".strip()


def _one_call(inputs):
    return "one call"


def _cpu_flash_calls(inputs):
    from kerasattention.attend import tiling

    planned = tiling.plan_kernel_calls(inputs.widened(), broadcasts=True)
    return _runs((p.rows, p.columns, p.count, p.causal) for p in planned)


def _torch_tiles(inputs):
    from kerasattention.attend.kernels.torch import tiled

    planned = tiled.plan_query_blocks(inputs.scaled(), tiled.BLOCK_SIZE)
    return _runs((block.rows, tile, 1, False) for block in planned for tile in block.columns)


def _jax_tile(inputs):
    from kerasattention.attend.kernels.jax import tiled

    tile = tiled.choose_tile_size(inputs.scaled())
    each = ", sample by sample" if tile.by_sample else ""
    return f"tile {tile.rows} x {tile.columns}{each}"


def _tensorflow_blocks(inputs):
    from kerasattention.attend.kernels.tensorflow import unrolled

    inputs = inputs.scaled()
    groups = [span.size for span in unrolled.plan_head_groups(inputs)]
    planned = unrolled.plan_steps(inputs, None)
    runs = _runs((p.rows, p.columns, p.count, False) for p in planned)
    return f"unrolled, head groups {groups}: {runs}"


def _tensorflow_loop(inputs):
    from kerasattention.attend.kernels.tensorflow import loop_blocks

    return f"loop of blocks of {loop_blocks.BLOCK_SIZE}"


BLOCKS = {
    "torch.sdpa": _one_call,
    "torch.cpu_flash": _cpu_flash_calls,
    "torch.tiled": _torch_tiles,
    "jax.tiled": _jax_tile,
    "tensorflow.unrolled": _tensorflow_blocks,
    "tensorflow.loop": _tensorflow_loop,
}


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
