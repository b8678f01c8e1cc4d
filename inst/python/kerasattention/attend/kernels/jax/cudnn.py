"""cuDNN's kernel, on CUDA devices only.

It takes K < N heads, a causal rule and with it a window. It wants masks and biases as
(B, N, T, S) tensors, so the registry gives those to other kernels.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from kerasattention.attend.inputs import AttentionInputs
from kerasattention.attend.tensors import join_query_heads, split_query_heads

LARGEST_HEAD = 128  # on every GPU that has the kernel; only Hopper's take 256


def unsupported(inputs: AttentionInputs, device: Any = None) -> str | None:
    """The argument that the kernel cannot honour, if there is one."""
    given = {
        "logit_soft_cap": inputs.soft_cap is not None,
        "dropout": inputs.rate > 0.0,
        "sink": inputs.sink is not None,
        "attention_bias": inputs.bias is not None,
    }
    for name, is_given in given.items():
        if is_given:
            return name
    return (
        _device_reason(device or jax.devices()[0]) or _size_reason(inputs) or _mask_reason(inputs)
    )


def cudnn_attention(
    inputs: AttentionInputs,
    block_size: int | None = None,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Any:
    """(B, K, G, T, Hv)."""
    reach = inputs.mask.reach
    output = jax.nn.dot_product_attention(
        join_query_heads(inputs.query),  # (B, T, N, H)
        *(jnp.swapaxes(x, 1, 2) for x in (inputs.key, inputs.value)),  # (B, S, K, H)
        scale=inputs.scale,
        is_causal=reach.after == 0,
        local_window_size=None if reach.before is None else (reach.before, 0),
        implementation=implementation,
    )  # (B, T, N, H)
    return split_query_heads(output, inputs.kv_heads)  # (B, K, G, T, H)


def _device_reason(device: Any) -> str | None:
    if _has_cudnn(device):
        return None
    return f"the device ({device.device_kind} has no kernel on JAX)"


def _has_cudnn(device: Any) -> bool:
    """Whether cuDNN has its kernel of attention there: CUDA, from Ampere (8.0) on."""
    if device.platform != "gpu" or "cuda" not in device.client.platform_version.lower():
        return False
    return float(device.compute_capability) >= 8.0


def _size_reason(inputs: AttentionInputs) -> str | None:
    dtypes = {x.dtype for x in (inputs.query, inputs.key, inputs.value)}
    if len(dtypes) > 1 or dtypes.pop() not in (jnp.float16, jnp.bfloat16):
        return "a dtype other than float16 and bfloat16 for all of query, key and value"
    size = inputs.query.shape[-1]
    if size != inputs.value.shape[-1] or size % 8 != 0 or size > LARGEST_HEAD:
        return f"head sizes but multiples of 8 up to {LARGEST_HEAD}, of query and value alike"
    if 0 in (inputs.query.shape[3], inputs.key.shape[2]):
        return "an empty query or key"
    return None


def _mask_reason(inputs: AttentionInputs) -> str | None:
    mask, reach = inputs.mask, inputs.mask.reach
    for rule in (*mask.token_rules, *mask.position_rules):
        if not rule.is_band:
            return rule.argument
    if not mask.positions_are_indices or reach.offset != 0:
        return "positions other than indices"
    if reach.after not in (None, 0):
        return "sliding_window without a causal rule"
    if reach.before is not None and inputs.query.shape[3] != inputs.key.shape[2]:
        return "sliding_window with T != S"
    return None
