"""The fused way on JAX: cuDNN's kernel, chosen on CUDA devices only.

It takes K < N heads, a causal rule and with it a window. Masks and biases it wants as
(B, N, T, S) tensors, so those go the blocked way.
"""

from typing import Any

import jax
import jax.numpy as jnp

from kerasattention.attend.inputs import Problem
from kerasattention.attend.tensors import join_query_heads, split_query_heads

KERNEL = "cudnn"
LARGEST_HEAD = 128  # on every GPU that has the kernel; Hopper's alone take 256


def prevents(problem: Problem) -> str | None:
    """The argument that the kernel cannot honour, if there is one."""
    asked = {
        "logit_soft_cap": problem.soft_cap is not None,
        "dropout": problem.rate > 0.0,
        "sink": problem.sink is not None,
        "attention_bias": problem.bias is not None,
    }
    for name, given in asked.items():
        if given:
            return name
    return _prevented_by_device() or _prevented_by_sizes(problem) or _prevented_by_masks(problem)


def fused_attention(problem: Problem) -> Any:
    """(B, K, G, T, Hv)."""
    visibility = problem.visibility
    window = visibility.window
    output = jax.nn.dot_product_attention(
        join_query_heads(problem.query),
        *(jnp.swapaxes(x, 1, 2) for x in (problem.key, problem.value)),
        scale=problem.scale,
        is_causal=visibility.causal,
        local_window_size=None if window is None else (window - 1, 0),
        implementation=KERNEL,
    )
    return split_query_heads(output, problem.kv_heads)


def _prevented_by_device() -> str | None:
    device = jax.devices()[0]
    if KERNEL != "cudnn" or _has_cudnn(device):
        return None
    return f"the device ({device.device_kind} has no kernel on JAX)"


def _has_cudnn(device: jax.Device) -> bool:
    """Whether cuDNN has its kernel of attention there: CUDA, from Ampere (8.0) on."""
    if device.platform != "gpu" or "cuda" not in device.client.platform_version.lower():
        return False
    return float(device.compute_capability) >= 8.0


def _prevented_by_sizes(problem: Problem) -> str | None:
    dtypes = {x.dtype for x in (problem.query, problem.key, problem.value)}
    if len(dtypes) > 1 or dtypes.pop() not in (jnp.float16, jnp.bfloat16):
        return "a dtype other than float16 and bfloat16 for all of query, key and value"
    size = problem.query.shape[-1]
    if size != problem.value.shape[-1] or size % 8 != 0 or size > LARGEST_HEAD:
        return f"head sizes but multiples of 8 up to {LARGEST_HEAD}, of query and value alike"
    if 0 in (problem.query.shape[3], problem.key.shape[2]):
        return "an empty query or key"
    return None


def _prevented_by_masks(problem: Problem) -> str | None:
    visibility = problem.visibility
    if visibility.mask is not None:
        return "attention_mask"
    if visibility.key_mask is not None:
        return "a mask of padding"
    if visibility.query_segments is not None:
        return "segment_ids"
    if not visibility.positions_are_indices or visibility.offset != 0:
        return "positions other than indices"
    if visibility.window is None:
        return None
    if not visibility.causal:
        return "sliding_window without a causal rule"
    if problem.query.shape[3] != problem.key.shape[2]:
        return "sliding_window with T != S"
    return None
