"""The size of the clients' covariance, fast for many clients: Gram matrices in float32, held to a bound."""

from __future__ import annotations

import torch
from torch import Tensor

from fedrot.core.lowrank import norm

MANY = 256
"""Stacked rank from which float32 Gram matrices save more than they cost."""
LIMIT = 32.0
"""How much larger than their sum the summed terms may be; each is known to about 1e-7."""
BLOCKS = 8


def centred_norms(a: Tensor, b: Tensor, shares: Tensor) -> tuple[Tensor, Tensor] | None:
    """`||E||_F` and `||W||_F` for `E = sum p_i (b_i - mean(b)) (a_i - mean(a))`, `W = E + mean(b) mean(a)`.

    With `a_0, b_0` the means rounded to float32, the deviations `a_i - a_0` are exact to float32 rounding of their own
    size, and `E = sum p_i (b_i - b_0)(a_i - a_0) - (mean(b) - b_0)(mean(a) - a_0)`. Sums of the products of two Gram
    matrices are accumulated in float64. Rounding shows only where the terms cancel: where the sum of their
    absolute values is more than `LIMIT` times their sum, nothing is returned.

    Args:
        a: `(N, ..., r, d_in)`.
        b: `(N, ..., d_out, r)`.
        shares: `(N,)` in float64, adding up to one.

    Returns:
        Two float64 tensors `(...)`; None for few clients, for float64 inputs, and where terms cancel.
    """
    if a.dtype != torch.float32 or b.dtype != torch.float32 or len(a) * a.shape[-2] < MANY:
        return None
    weights = shares.float()
    a_mid, b_mid = (torch.einsum("n,n...->...", weights, t) for t in (a, b))
    a_apart, b_apart = a - a_mid, b - b_mid
    a_low, b_low = (torch.einsum("n,n...->...", weights, t) for t in (a_apart, b_apart))
    rows = a_apart.movedim(0, -3).flatten(-3, -2)
    columns = b_apart.mul_(weights.view(-1, *[1] * (b.ndim - 1))).movedim(0, -2).flatten(-2, -1)
    total, size = _square(rows, columns)
    a_mean, b_mean = a_mid.double() + a_low, b_mid.double() + b_low

    # The inner products of `columns @ rows` with `b_low @ a_low` and `b_mean @ a_mean`, in one pass over both.
    left = torch.cat([b_low, b_mean.float()], -1).mT @ columns
    right = torch.cat([a_low, a_mean.float()], -2) @ rows.mT
    parts, rank = (left * right).sum(-1, dtype=torch.float64), a.shape[-2]
    drop, shared = parts[..., :rank].sum(-1), parts[..., rank:].sum(-1)
    drop_size = norm(a_low.double(), b_low.double()).square()
    error = total - 2 * drop + drop_size
    cross = shared - _inner(a_low, b_low, a_mean, b_mean)
    mean_size = norm(a_mean, b_mean).square()
    ideal = error + 2 * cross + mean_size
    sums = size + 2 * drop.abs() + drop_size
    if bool((sums <= LIMIT * error).all() & (sums + 2 * cross.abs() + mean_size <= LIMIT * ideal).all()):
        return error.sqrt(), ideal.sqrt()
    return None


def _square(rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """`||columns @ rows||_F^2` as a sum of products of Gram entries, and the sum of their absolute values.

    Gram matrices are symmetric, so that blocks below the diagonal are left out.
    """
    rank = rows.shape[-2]
    step = -(-rank // BLOCKS)
    total = torch.zeros(rows.shape[:-2], dtype=torch.float64, device=rows.device)
    size = total.clone()
    for start in range(0, rank, step):
        end = min(start + step, rank)
        right = rows[..., start:end, :] @ rows[..., start:, :].mT
        terms = right.mul_(columns[..., start:end].mT @ columns[..., start:])
        for part, times in ((terms[..., : end - start], 1), (terms[..., end - start :], 2)):
            total += times * part.sum((-2, -1), dtype=torch.float64)
            size += times * part.abs().sum((-2, -1), dtype=torch.float64)
    return total, size


def _inner(a: Tensor, b: Tensor, a_other: Tensor, b_other: Tensor) -> Tensor:
    """`<b @ a, b_other @ a_other>` in float64."""
    return ((b.double().mT @ b_other) * (a.double() @ a_other.mT)).sum((-2, -1))
