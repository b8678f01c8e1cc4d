"""Small tensor helpers that keras.ops lacks.

Shape letters, here and in every module of `attend`: B batch, T query length,
S key/value length, N query heads, K key/value heads, G = N / K queries per
key/value head, H head size, Hv value head size, X a size that is any of these;
t and s are the lengths of a block of queries and of keys; S|1 is an axis of
size S or 1, which broadcasts.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias, cast

import keras
import numpy as np
from keras import ops

# A tensor of the backend. No type of ours describes it to pyright: Keras's functions return
# unions of all backends' types and None, so that each call would need a cast. The kernels of
# JAX and torch name their backend's type.
Tensor: TypeAlias = Any

# What each axis of a tensor counts: "batch", "heads" (N), "key_heads" (K), "tokens" (T or S) or,
# with None, others.
Axes: TypeAlias = tuple[str | None, ...]


def is_compiled_by_xla() -> bool:
    """Whether XLA will compile what TensorFlow traces, as in `fit()` with `jit_compile=True`."""
    import tensorflow as tf
    from tensorflow.python.ops.control_flow_util import GraphOrParentsInXlaContext

    return not tf.executing_eagerly() and GraphOrParentsInXlaContext(
        tf.compat.v1.get_default_graph()
    )


def shape_of(x: Tensor) -> tuple[Any, ...]:
    """The shape, with a tensor for each size that a graph does not know."""
    return cast("tuple[Any, ...]", ops.shape(x))


def sizes_of(variable: Any) -> tuple[int, ...]:
    """The shape of a variable, whose sizes are all known."""
    return tuple(variable.shape)


# Keras annotates neither of these two, and the types inferred from its backends are wrong.


def numpy_of(x: Tensor) -> np.ndarray:
    """The numbers of a tensor or variable."""
    return cast("np.ndarray", ops.convert_to_numpy(x))


def tensor_of(x: Any, dtype: Any = None) -> Tensor:
    """The backend's tensor of an array or of numbers."""
    return ops.convert_to_tensor(x, dtype=dtype)


def is_static(*sizes: Any) -> bool:
    return all(isinstance(size, int) for size in sizes)


def is_dtensor(x: Any) -> bool:
    """Whether a tensor is one of torch's that several processes have parts of."""
    return type(x).__name__ == "DTensor"


def accumulator_of(dtype: Any) -> str:
    """The dtype to compute in: float64 for float64, and float32 for all others."""
    return "float64" if keras.backend.standardize_dtype(dtype) == "float64" else "float32"


def wants_float32_inputs(dtype: str) -> bool:
    """Whether products of this dtype need their inputs cast to float32.

    float16 overflows at 65504, and outside accelerators low precision is not
    faster. Only JAX can accumulate bfloat16 products in float32 (see `matmul`).
    """
    if dtype == "bfloat16" and keras.backend.backend() == "jax":
        import jax

        return jax.default_backend() == "cpu"
    return dtype in ("float16", "bfloat16")


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """A batched matrix product whose result is float32 or better."""
    dtype = keras.backend.standardize_dtype(a.dtype)
    if dtype == "bfloat16" and keras.backend.backend() == "jax":
        import jax.numpy as jnp

        return jnp.matmul(a, b, preferred_element_type=jnp.float32)
    if dtype == "float64":
        # On torch Keras computes a product of doubles in float32.
        return a @ ops.cast(b, dtype)
    return ops.matmul(a, b)


def are_finite(tensors: Sequence[Tensor]) -> Tensor:
    """A boolean: whether the tensors hold finite numbers only.

    Finite numbers whose sum overflows count as non-finite, which costs time and changes nothing.
    """
    if _checks_numerics():
        return functools.reduce(ops.logical_and, [ops.all(ops.isfinite(x)) for x in tensors])
    sums = []
    for x in tensors:
        axes = tuple(range(len(x.shape) - 1))
        x = ops.cast(x, accumulator_of(x.dtype))
        # First over all axes but the last: XLA computes such sums with vectors.
        sums.append(ops.sum(ops.sum(x, axis=axes)))
    return ops.isfinite(functools.reduce(ops.add, sums))


def _checks_numerics() -> bool:
    """Whether TensorFlow checks each result, as `tf.debugging.enable_check_numerics()` has it.

    A sum that is not finite would end the call.
    """
    if keras.backend.backend() != "tensorflow":
        return False
    from tensorflow.python.framework import op_callbacks

    return op_callbacks.should_invoke_op_callbacks()


def tanh(x: Tensor) -> Tensor:
    """In the dtype of x: Keras gives float32 for a float64 on JAX."""
    if keras.backend.backend() == "jax":
        import jax.numpy as jnp

        return jnp.tanh(x)
    return ops.tanh(x)


def cos_and_sin(x: Tensor) -> tuple[Tensor, Tensor]:
    """In the dtype of x, as `tanh`."""
    if keras.backend.backend() == "jax":
        import jax.numpy as jnp

        return jnp.cos(x), jnp.sin(x)
    return ops.cos(x), ops.sin(x)


def segment_sum(x: Tensor, segments: Tensor, count: int) -> Tensor:
    """Sums (n, X) by segment to (count, X), in the dtype of x: Keras adds in float32 on torch."""
    if keras.backend.backend() == "torch":
        return x.new_zeros((count, *x.shape[1:])).index_add(0, segments, x)
    return ops.segment_sum(x, segments, num_segments=count)


def rms_normalize(x: Tensor, scale: Tensor, epsilon: float) -> Tensor:
    """(..., X) by its root mean square, in the dtype of x: Keras computes in float32."""
    squares = ops.sum(x * x, axis=-1, keepdims=True) / x.shape[-1]  # (..., 1)
    return x / ops.sqrt(squares + epsilon) * ops.cast(scale, x.dtype)  # (..., X)


def transpose_last(x: Tensor) -> Tensor:
    """Swaps the last two axes."""
    axes = list(range(len(x.shape)))
    axes[-1], axes[-2] = axes[-2], axes[-1]
    return ops.transpose(x, axes)


def split_query_heads(x: Tensor, num_key_value_heads: int) -> Tensor:
    """(B, T, N, H) to (B, K, G, T, H): queries grouped by the head they share."""
    batch, length, _, size = shape_of(x)
    groups = x.shape[2] // num_key_value_heads
    x = ops.reshape(x, (batch, length, num_key_value_heads, groups, size))  # (B, T, K, G, H)
    return ops.transpose(x, (0, 2, 3, 1, 4))  # (B, K, G, T, H)


def join_query_heads(x: Tensor) -> Tensor:
    """(B, K, G, T, H) to (B, T, N, H), the inverse of `split_query_heads`."""
    batch, _, _, length, size = shape_of(x)
    x = ops.transpose(x, (0, 3, 1, 2, 4))  # (B, T, K, G, H)
    return ops.reshape(x, (batch, length, x.shape[2] * x.shape[3], size))  # (B, T, N, H)


def split_key_heads(x: Tensor) -> Tensor:
    """(B, S, K, H) to (B, K, S, H)."""
    return ops.transpose(x, (0, 2, 1, 3))  # (B, K, S, H)


def stack_groups(x: Tensor) -> Tensor:
    """(B, K, G, t, X) to (B, K, G * t, X): one product serves all queries of a key head."""
    batch, kv_heads, groups, length, size = shape_of(x)
    return ops.reshape(x, (batch, kv_heads, groups * length, size))


def unstack_groups(x: Tensor, groups: int) -> Tensor:
    """(B, K, G * t, X) to (B, K, G, t, X)."""
    batch, kv_heads, rows, size = shape_of(x)
    return ops.reshape(x, (batch, kv_heads, groups, rows // groups, size))


def group_heads(x: Tensor, kv_heads: int) -> Tensor:
    """(B|1, N|1, t, s) to (B|1, K|1, G|1, t, s), for masks and biases."""
    batch, _, rows, columns = shape_of(x)
    if x.shape[1] == 1:
        return ops.expand_dims(x, 1)  # (B|1, 1, 1, t, s)
    groups = x.shape[1] // kv_heads
    return ops.reshape(x, (batch, kv_heads, groups, rows, columns))  # (B|1, K, G, t, s)


class Span(NamedTuple):
    """Consecutive queries or keys. Either number may be a tensor while a graph is traced."""

    start: Any
    size: Any

    @property
    def stop(self) -> Any:
        return self.start + self.size


class KeySpans(NamedTuple):
    """Several spans of keys, in order, for which one block of queries is computed."""

    spans: tuple[Span, ...]

    @property
    def size(self) -> Any:
        return sum(span.size for span in self.spans)


# The keys of a block.
Columns: TypeAlias = Span | KeySpans


def one_span(columns: Columns) -> Span:
    """The keys of a block that has one span."""
    return cast("Span", columns)


def spans_of(columns: Columns) -> tuple[Span, ...]:
    return columns.spans if isinstance(columns, KeySpans) else (columns,)


def shifted(columns: Columns, by: Any) -> Any:
    """The same tokens, whose indices are larger by a number."""
    if is_static(by) and by == 0:
        return columns
    if isinstance(columns, KeySpans):
        return KeySpans(tuple(Span(span.start + by, span.size) for span in columns.spans))
    return Span(columns.start + by, columns.size)


def indices_of(columns: Columns) -> Tensor:
    """(s) int32: the indices of the tokens."""
    parts = [ops.arange(span.size, dtype="int32") + span.start for span in spans_of(columns)]
    return parts[0] if len(parts) == 1 else ops.concatenate(parts, axis=0)


def split_columns(x: Tensor, axis: int, columns: Columns) -> list[tuple[Span, Tensor]]:
    """The spans of the columns, each with its part of an axis of size s."""
    if isinstance(columns, Span):
        return [(columns, x)]
    found, start = [], 0
    for span in columns.spans:
        found.append((span, slice_axis(x, axis, Span(start, span.size))))
        start = start + span.size
    return found


def pad_columns(x: Tensor, axis: int, columns: Columns, length: Any) -> Tensor:
    """Pads an axis of size s with zeros to `length`, each column in its place."""
    parts, last = [], 0
    for span, part in split_columns(x, axis, columns):
        padding = [(0, 0)] * len(x.shape)
        is_last = span is spans_of(columns)[-1]
        padding[axis] = (span.start - last, length - span.stop if is_last else 0)
        parts.append(ops.pad(part, padding))
        last = span.stop
    return parts[0] if len(parts) == 1 else ops.concatenate(parts, axis=axis)


def slice_axis(x: Tensor, axis: int, span: Columns) -> Tensor:
    """The span or spans of an axis, or x itself where that axis broadcasts."""
    length = x.shape[axis]
    if isinstance(span, KeySpans):
        if length == 1:
            return x
        return ops.concatenate([slice_axis(x, axis, part) for part in span.spans], axis=axis)
    if length == 1 or (is_static(*span) and span == (0, length)):
        return x
    if is_static(span.start):
        index = [slice(None)] * len(x.shape)
        index[axis] = slice(span.start, span.stop)
        return x[tuple(index)]
    starts = [0] * len(x.shape)
    starts[axis] = span.start
    sizes = list(shape_of(x))
    sizes[axis] = span.size
    return ops.slice(x, starts, sizes)
