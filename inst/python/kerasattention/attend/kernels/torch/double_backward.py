"""Second derivatives of torch's public function, whose kernels have first ones only."""

from typing import Any

import torch

Tensor = torch.Tensor

# The kernels' nodes in the graph, and the name of the mask that each of them saved.
_NODES = {
    "ScaledDotProductFlashAttentionForCpuBackward0": "_saved_attn_mask",
    "ScaledDotProductFlashAttentionBackward0": None,
    "ScaledDotProductEfficientAttentionBackward0": "_saved_attn_bias",
    "ScaledDotProductCudnnAttentionBackward0": "_saved_attn_bias",
}


def with_second_derivative(output: Tensor) -> Tensor:
    """Makes the kernel's gradient differentiable, which torch does not.

    A hook reads the tensors that the node has saved. It took 60 us of a
    gradient of 1300 us (T = 16, a busy machine), and a `Function` of ours 600 us.
    """
    node = output.grad_fn
    if node is not None and node.name() in _NODES:
        node.register_hook(_differentiable_gradients)
    return output


def _differentiable_gradients(
    gradients: tuple[Tensor | None, ...], upstream: tuple[Tensor, ...]
) -> tuple[Tensor | None, ...] | None:
    """The plain formula's gradients, where a graph of them is asked for."""
    if not torch.is_grad_enabled():
        return None
    node: Any = torch._C._current_autograd_node()
    saved = (node._saved_query, node._saved_key, node._saved_value)
    # Views: one may be a function of another, or the same tensor.
    moving = [x.view_as(x) for x in saved]
    name_of_mask = _NODES[node.name()]
    output = torch.ops.aten._scaled_dot_product_attention_math(
        *moving,
        None if name_of_mask is None else getattr(node, name_of_mask),
        0.0,
        node._saved_is_causal,
        scale=node._saved_scale,
        enable_gqa=saved[0].shape[1] != saved[1].shape[1],
    )[0]  # (B, N, t, X)
    needed = [index for index in range(3) if gradients[index] is not None]
    found = torch.autograd.grad(
        output, [moving[index] for index in needed], upstream[0], create_graph=True
    )
    replaced = dict(zip(needed, found, strict=True))
    return tuple(replaced.get(index) for index in range(len(gradients)))
