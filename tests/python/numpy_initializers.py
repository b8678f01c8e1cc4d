"""Initial weights drawn by NumPy, for which JAX compiles a program of 0.1 s for each shape."""

import sys

import keras
import numpy as np

# The module of Keras's initializers, whose place differs between versions.
initializers = sys.modules[keras.initializers.RandomNormal.__module__]
REST = initializers.random


class NumpyDraws:
    """In the place of `keras.random` within initializers; what is not drawn here is as there."""

    def __getattr__(self, name):
        return getattr(REST, name)

    def uniform(self, shape, minval=0.0, maxval=1.0, dtype=None, seed=None):
        return _tensor(_generator(seed).uniform(minval, maxval, shape), dtype)

    def normal(self, shape, mean=0.0, stddev=1.0, dtype=None, seed=None):
        return _tensor(_generator(seed).normal(mean, stddev, shape), dtype)

    def truncated_normal(self, shape, mean=0.0, stddev=1.0, dtype=None, seed=None):
        generator = _generator(seed)
        x = generator.standard_normal(shape)
        while (far := np.abs(x) > 2).any():
            x[far] = generator.standard_normal(far.sum())
        return _tensor(mean + stddev * x, dtype)


def _generator(seed):
    if isinstance(seed, int):
        return np.random.default_rng(seed)
    return np.random.default_rng(np.asarray(seed.next()).tolist())


def _tensor(x, dtype):
    dtype = dtype or keras.config.floatx()
    return keras.ops.convert_to_tensor(
        np.asarray(x, "float32" if dtype == "bfloat16" else dtype), dtype
    )


def install():
    initializers.random = NumpyDraws()
