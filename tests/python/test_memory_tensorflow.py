"""Peak memory of TensorFlow's kernels; `tests/fuzz/memory.py` measures all backends' kernels."""

import pathlib

import numpy as np

from backends import tensor, value_and_gradients
from kerasattention import scaled_dot_product_attention

N, T = 4, 3072


def status(name):
    """Megabytes of a line of this process's status."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def differentiate(length):
    rng = np.random.default_rng(0)
    inputs = {
        name: tensor(rng.normal(size=(1, length, heads, 16)))
        for name, heads in (("query", N), ("key", 2), ("value", 2))
    }
    value_and_gradients(
        lambda **x: (scaled_dot_product_attention(**x, causal=True, implementation="blocked"),),
        inputs,
        tensor(np.ones((1, length, N, 16))),
    )


def test_an_eager_tape_keeps_no_scores_of_the_blocked_kernel():
    differentiate(256)
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    differentiate(T)
    # The causal half of the scores alone; the tape kept them three times over.
    assert status("VmHWM") - before < N * T * T * 4 / 2 / 2**20
