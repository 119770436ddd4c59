"""Cross-entropy behind a frozen output layer, without keeping the logits of all tokens."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 2**24
"""Logits held at a time, in numbers: 64 MiB in float32."""


class TokenScores(NamedTuple):
    """Of `m` predicted tokens: negative log-likelihood in nats, float32 or better, and whether it was the likeliest."""

    loss: Tensor
    correct: Tensor


def frozen_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, chunk: int = CHUNK
) -> TokenScores:
    """`-log softmax(hidden W^T + bias)[target]` of every row, differentiable in `hidden` alone.

    With `p = softmax(hidden W^T + bias)` the gradient of row `i`'s loss by its own hidden state is `(p_i - e_i) W`,
    whatever the weight that the row has in the total: it is formed with the loss, a chunk of rows at a time, and only
    `(m, d)` numbers are kept for the backward pass instead of two or three times `(m, vocabulary)`. The same products
    as in the plain computation are formed once each. (As in fused linear cross-entropy, e.g. Hsu et al.,
    "Liger Kernel", 2024.)

    Args:
        hidden: `(m, d)`, in the base model's precision.
        weight: `(vocabulary, d)`, frozen.
        bias: `(vocabulary,)`, frozen, or None.
        targets: `(m,)` int64.
        chunk: logits to hold at a time.

    Returns:
        Loss `(m,)`, correct `(m,)` boolean. `correct` has no gradient.
    """
    loss, correct = cast(
        tuple[Tensor, Tensor],
        _FrozenCrossEntropy.apply(hidden, weight, bias, targets, chunk),  # pyright: ignore[reportUnknownMemberType]
    )
    return TokenScores(loss, correct)


class _FrozenCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, chunk: int
    ) -> tuple[Tensor, Tensor]:
        rows = max(1, chunk // weight.shape[0])
        wide = torch.promote_types(hidden.dtype, torch.float32)
        loss = hidden.new_empty(len(hidden), dtype=wide)
        correct = torch.empty(len(hidden), dtype=torch.bool, device=hidden.device)
        grad = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            logits = torch.nn.functional.linear(hidden[part], weight, bias).to(wide)
            target = targets[part].unsqueeze(1)
            total = logits.logsumexp(1, keepdim=True)
            loss[part] = (total - logits.gather(1, target)).squeeze(1)
            correct[part] = logits.argmax(1) == targets[part]
            if grad is not None:
                share = logits.sub_(total).exp_()
                share.scatter_add_(1, target, share.new_full((1, 1), -1.0).expand(len(share), 1))
                grad[part] = share.to(weight.dtype) @ weight
        ctx.save_for_backward(grad)
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad,) = ctx.saved_tensors
        return (grad_loss.unsqueeze(1).to(grad.dtype) * grad if grad is not None else None, *[None] * 4)
