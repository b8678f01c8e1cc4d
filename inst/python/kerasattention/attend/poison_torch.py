"""`finite.poison()` on torch."""

from typing import Any

import torch

Tensor = torch.Tensor


def poison(x: Tensor, rows: Tensor) -> Tensor:
    """NaN where `rows`, which is broadcast to x, is true."""
    if torch.compiler.is_compiling():
        # Twice a large factor, since 0 * infinity would be NaN.
        large = 1e200 if x.dtype == torch.float64 else 1e30
        factor = torch.ones(rows.shape, dtype=x.dtype, device=x.device).masked_fill(rows, large)
        return torch.where(rows, torch.nan, 0.0) + x * factor * factor
    return _Poison.apply(x, rows)


class _Poison(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, rows: Tensor) -> Tensor:
        return torch.where(rows, torch.nan, x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.save_for_forward(inputs[1])

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        return _infinite(upstream, *ctx.saved_tensors), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return _infinite(tangent, *ctx.saved_tensors)


def _infinite(x: Tensor, rows: Tensor) -> Tensor:
    """Infinite where `rows` is true and x is not zero, constant for second derivatives."""
    return x * torch.where(rows & (x != 0), torch.inf, 1.0).to(x.dtype)
