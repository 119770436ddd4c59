"""A frozen linear layer with a stack of clients' low-rank updates, forward and backward without copies."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def stacked_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    scale: float,
    mask: Tensor | None = None,
) -> Tensor:
    """`x W^T + bias + scale * ((x * mask) a^T) b^T`, where each client's rows meet that client's factors.

    Differentiable in `x`, `a` and `b`; `weight` and `bias` are frozen. Both low-rank products are added in place onto
    the dense ones, in the forward and in the backward pass; only `x` and the `(clients, n, rank)` product are kept.

    Args:
        x: `(clients, n, d_in)`.
        weight: `(d_out, d_in)`, shared by all clients.
        bias: `(d_out,)`, shared, or None.
        a: `(clients, rank, d_in)`.
        b: `(clients, d_out, rank)`.
        scale: `alpha / rank`.
        mask: `(clients, n, d_in)` dropout multipliers on the low-rank path, or None.

    Returns:
        `(clients, n, d_out)`.
    """
    return cast(Tensor, _StackedLinear.apply(x, weight, bias, a, b, scale, mask))  # pyright: ignore[reportUnknownMemberType]


class _StackedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scale: float,
        mask: Tensor | None,
    ) -> Tensor:
        inner = (x if mask is None else x * mask) @ a.mT
        out = torch.nn.functional.linear(x, weight, bias)
        ctx.save_for_backward(x, weight, a, b, inner, mask)
        ctx.scale = scale
        return out.baddbmm_(inner, b.mT, alpha=scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, a, b, inner, mask = ctx.saved_tensors
        needs_x, _, _, needs_a, needs_b, _, _ = ctx.needs_input_grad
        grad_inner = None  # (clients, n, rank)
        if needs_x or needs_a:
            # As rows of length d_out: CPU kernels take four times as long over the narrow columns of `b` as it lies.
            grad_inner = torch.bmm(grad, b.mT.contiguous().mT).mul_(ctx.scale)
        grad_x = grad_a = grad_b = None
        if grad_inner is not None and needs_a:
            grad_a = torch.bmm(grad_inner.mT, x if mask is None else x * mask)
        if needs_b:
            grad_b = torch.bmm(inner.mT, grad).mul_(ctx.scale).mT  # for the same reason
        if grad_inner is not None and needs_x:
            grad_x = grad @ weight
            if mask is None:
                grad_x.baddbmm_(grad_inner, a)
            else:
                grad_x.addcmul_(torch.bmm(grad_inner, a), mask)
        return grad_x, None, None, grad_a, grad_b, None, None
