"""Poisoned masked places with the backend's own NaN checker on: nothing may trip it.

    python tests/fuzz/nan_checkers.py --backend jax

Keys and values that no query may see hold NaN, and some queries see no key at all. TensorFlow
checks the result of every operation for NaN and infinity, JAX for NaN, torch every gradient for
NaN. Ends with status 1 where a kernel trips the checker, or gives a result that is not finite.
"""

import contextlib
import sys

import session  # sets the backend and the paths; before Keras is imported

if __name__ == "__main__":
    ARGUMENTS = session.arguments(__doc__)

import keras
import numpy as np

import kerasattention as ka
from backends import tensor, value_and_gradients

B, T, S, N, K, H = 2, 13, 17, 6, 3, 5
KERNELS = ("plain", "blocked", None)


@contextlib.contextmanager
def checker():
    backend = keras.backend.backend()
    if backend == "torch":
        import torch

        with torch.autograd.set_detect_anomaly(True):
            yield
    elif backend == "jax":
        import jax

        with jax.debug_nans(True):
            yield
    else:
        import tensorflow as tf

        tf.debugging.enable_check_numerics()
        try:
            yield
        finally:
            tf.debugging.disable_check_numerics()


def run(kernel, poison):
    """Output and gradients with `poison` in keys and values that are masked out."""
    rng = np.random.default_rng(4)
    mask = rng.random((B, 1, T, S)) < 0.7
    mask[..., 5:8] = False
    mask[:, :, 3] = False
    sizes = {"query": (B, T, N, H), "key": (B, S, K, H), "value": (B, S, K, H)}
    inputs = {name: rng.normal(size=size) for name, size in sizes.items()}
    for name in ("key", "value"):
        inputs[name][:, 5:8] = poison
    options = {"attention_mask": tensor(mask, "bool"), "implementation": kernel}
    # Before the checker looks: making a tensor of NaN trips it too.
    inputs, upstream = {n: tensor(x) for n, x in inputs.items()}, tensor(np.ones((B, T, N, H)))
    with checker():
        outputs, gradients = value_and_gradients(
            lambda **x: (ka.scaled_dot_product_attention(**x, **options),), inputs, upstream
        )
    return [*outputs, *gradients.values()]


def main():
    failed = False
    for kernel in KERNELS:
        for poison in (0.0, np.nan):
            try:
                found = run(kernel, poison)
                wrong = "" if all(np.isfinite(x).all() for x in found) else "a result is not finite"
            except Exception as error:
                wrong = f"{type(error).__name__}: {str(error).splitlines()[0][:100]}"
            failed |= bool(wrong)
            what = f"{ARGUMENTS.backend}, implementation={kernel!r}, {poison} where masked"
            print(f"NaN checker on {what}: {wrong or 'nothing found'}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
