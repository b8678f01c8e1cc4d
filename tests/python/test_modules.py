"""Every module with a function or a class has a test file: one of its name, or one named here."""

import ast
from pathlib import Path

import kerasattention

ROOT = Path(kerasattention.__file__).parent
TESTS = Path(__file__).parent

# Tested through what uses them, by the file named.
TESTED_BY = {
    "_backend": "backend",
    "_bridge": "bridge",
    "_keras": "keras_names",
    "_messages": "messages",
    "attend/api": "attend",
    "attend/finite": "masked_nonfinite",
    "attend/gradient": "second_derivatives",
    "attend/intervals": "masks",
    "attend/poison_jax": "nonfinite_second_derivatives",
    "attend/poison_torch": "nonfinite_second_derivatives",
    "attend/poisoned_rows": "masked_nonfinite",
    "attend/prepare": "attend_inputs",
    "attend/registry": "kernel_choice",
    "attend/run": "attend",
    "attend/sharing": "sharded_jax",
    "attend/weights": "attend",
    "attend/kernels/plain": "attend",
    "attend/kernels/jax/ring": "ring_jax",
    "attend/kernels/jax/ring_backward": "ring_jax",
    "attend/kernels/jax/ring_parts": "ring_jax",
    "attend/kernels/jax/tile_lists": "masks",
    "attend/kernels/jax/tile_loops": "tiled_jax",
    "attend/kernels/jax/tiled_backward": "tiled_jax",
    "attend/kernels/tensorflow/accumulate": "unrolled_tensorflow",
    "attend/kernels/tensorflow/block": "unrolled_tensorflow",
    "attend/kernels/tensorflow/finite": "masked_nonfinite",
    "attend/kernels/tensorflow/loop_blocks": "loop_tensorflow",
    "attend/kernels/tensorflow/windows": "unrolled_tensorflow",
    "attend/kernels/torch/calls": "cpu_flash_torch",
    "attend/kernels/torch/double_backward": "second_derivatives",
    "attend/kernels/torch/sdpa": "cpu_flash_torch",
    "attend/kernels/torch/sharded": "dtensors_torch",
    "decoding/decoder": "decoding",
    "decoding/generate": "sampling",
    "decoding/inputs": "token_checks",
    "decoding/recheck": "rechecks",
    "decoding/record": "rechecks",
    "decoding/structure": "stale_decoders",
    "decoding/backends/jax": "decoding",
    "decoding/backends/placement_jax": "sharded_jax",
    "decoding/backends/products": "products_torch",
    "decoding/backends/products_tensorflow": "runner_tensorflow",
    "decoding/backends/select": "decoding",
    "decoding/backends/tensorflow": "runner_tensorflow",
    "decoding/backends/torch": "decoding",
    "decoding/graph/probe": "decode_trials",
    "decoding/graph/run": "decoding",
    "distribution/check": "devices_jax",
    "distribution/collectives": "devices_jax",
    "distribution/engine": "devices_jax",
    "distribution/head_parallel": "devices_jax",
    "distribution/layout_map": "devices_jax",
    "distribution/padding": "devices_jax",
    "distribution/probe": "devices_jax",
    "distribution/report": "devices_jax",
    "distribution/processes": "processes_jax",
    "distribution/scope": "devices_jax",
    "decoding/graph/trial_calls": "decode_trials",
    "layers/attention": "contract",
    "layers/docs": "layers_options",
    "layers/group_query_attention": "contract",
    "layers/multi_head_attention": "contract",
    "layers/nonfinite": "masked_nonfinite",
    "layers/recompute": "remat",
    "layers/partial_sums": "dtensors_torch",
    "layers/sharding": "sharded_jax",
    "layers/torch_parameters": "torch_parameters_torch",
    "masks/base": "masks",
    "masks/join": "masks",
    "masks/kinds": "masks",
    "models/interrupts_jax": "interrupts",
    "positions/base": "positions",
    "positions/buckets": "relative",
    "positions/frequencies": "scaling",
    "positions/lookup": "grid",
    "positions/offsets": "key_bias",
    "positions/scaling_checks": "positions",
}


def modules_with_logic():
    for path in sorted(ROOT.rglob("*.py")):
        if any(hasattr(node, "body") and hasattr(node, "name") for node in _body(path)):
            yield path.relative_to(ROOT).with_suffix("")


def _body(path):
    return ast.parse(path.read_text()).body


def is_tested_by_name(module):
    """By `test_<module>.py`, with the folder before or behind the name where others share it."""
    name, folder = module.name, module.parent.name
    files = (f"test_{name}.py", f"test_{folder}_{name}.py", f"test_{name}_{folder}.py")
    if name == "inputs" or folder == "backends":  # there are several of these
        files = files[1:]
    if name.endswith(("_jax", "_tensorflow", "_torch")):
        files = (f"test_{name}.py",)
    return any((TESTS / file).exists() for file in files)


def test_every_module_with_logic_has_a_test_file():
    missing = [
        module.as_posix()
        for module in modules_with_logic()
        if module.as_posix() not in TESTED_BY and not is_tested_by_name(module)
    ]
    assert missing == []


def test_the_table_names_files_and_modules_that_exist():
    known = {module.as_posix() for module in modules_with_logic()}
    assert TESTED_BY.keys() <= known, TESTED_BY.keys() - known
    for module, name in TESTED_BY.items():
        assert (TESTS / f"test_{name}.py").exists(), module
