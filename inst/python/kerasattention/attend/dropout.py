"""Dropout of attention weights as a function of seed and indices.

Whether the weight of query t for key s in head n is kept is a hash of
(seed, b, n, t, s). So every path, block size and backend drops the same weights
for the same seed, and a backward pass recomputes the pattern, storing nothing.
The mixer is the finaliser of MurmurHash3 (Appleby, public domain) on 32 bits.
"""

import math

import keras
from keras import ops

from kerasattention.attend.remat import draw_once
from kerasattention.attend.tensors import Columns, Span, Tensor, indices_of, is_static

_GLOBAL = type("GlobalGenerator", (), {})()  # Keras's own, which has no public name


def draw_seed(seed: keras.random.SeedGenerator | int | Tensor | None) -> Tensor:
    """Two int32 numbers from whatever Keras accepts as a seed."""
    if seed is None:
        seed = draw_once(_GLOBAL, lambda: keras.random.randint((2,), 0, 2**31 - 1))  # (2)
    elif isinstance(seed, int):
        seed = ops.convert_to_tensor([seed % (2**31), 0], dtype="int32")  # (2)
    elif isinstance(seed, keras.random.SeedGenerator):
        seed = draw_once(seed, seed.next)  # (2)
    return _to_int32(seed)


def keep_block(
    seed: Tensor, samples: Span, heads: Span, rows: Span, columns: Columns, rate: float
) -> Tensor:
    """Booleans (B, N, t, s): which attention weights survive."""
    sample = (
        ops.reshape(ops.arange(samples.size, dtype="int32"), (-1, 1, 1, 1)) + samples.start
    )  # (B, 1, 1, 1)
    head = ops.reshape(ops.arange(heads.size, dtype="int32"), (1, -1, 1, 1))  # (1, N, 1, 1)
    if not is_static(heads.start) or heads.start:
        head = head + heads.start  # (1, N, 1, 1)
    row = (
        ops.reshape(ops.arange(rows.size, dtype="int32"), (1, 1, -1, 1)) + rows.start
    )  # (1, 1, t, 1)
    column = indices_of(columns)  # (s)
    stream = mix_bits(seed[0] + mix_bits(seed[1] + mix_bits(sample * 65537 + head)))  # (B, N, 1, 1)
    state = mix_bits(stream + mix_bits(row)) ^ mix_bits(column + seed[0])  # (B, N, t, s)
    threshold = math.floor(rate * 2**32) - 2**31
    return mix_bits(state) >= threshold  # (B, N, t, s)


def mix_bits(x: Tensor) -> Tensor:
    """A hash of int32 numbers, each by itself."""
    x = x ^ _shift(x, 16)
    x = x * -2048144789  # 0x85EBCA6B as a signed number
    x = x ^ _shift(x, 13)
    x = x * -1028477387  # 0xC2B2AE35
    return x ^ _shift(x, 16)


def _shift(x: Tensor, bits: int) -> Tensor:
    """A logical shift to the right: the sign must not be copied in."""
    return ops.bitwise_and(ops.right_shift(x, bits), (1 << (32 - bits)) - 1)


def _to_int32(seed: Tensor) -> Tensor:
    if keras.backend.standardize_dtype(seed.dtype) == "int32":
        return seed
    # The low 31 bits: JAX has unsigned seeds, and no int64 to widen them to.
    return ops.cast(ops.bitwise_and(seed, 2**31 - 1), "int32")
