"""Algebra of sums of low-rank products, without ever forming a `d_out x d_in` matrix.

A sum `sum_i p_i b_i @ a_i` is one pair of factors whose rank is the sum of the ranks; its norm and its best
approximations follow from that pair. Everything is computed in float64 and returned in the inputs' precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fedrot.core import linalg
from fedrot.core.adapter import Factors
from fedrot.core.polar import full_precision, widen
from fedrot.core.summed import pays


class Truncated(NamedTuple):
    """A best approximation of lower rank: balanced factors, and all singular values, descending."""

    a: Tensor
    b: Tensor
    singular_values: Tensor


def concatenate(a: Tensor, b: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """`sum_i w_i b_i @ a_i` as one product.

    Args:
        a: `(N, ..., r, d_in)`.
        b: `(N, ..., d_out, r)`.
        weights: `(N,)`, of any sign.

    Returns:
        `(..., N r, d_in)` and `(..., d_out, N r)`.
    """
    weighted = b * weights.to(b).view(-1, *[1] * (b.ndim - 1))
    return a.movedim(0, -3).flatten(-3, -2), weighted.movedim(0, -2).flatten(-2, -1)


@torch.no_grad()
def weighted_sum(factors: Sequence[Factors], weights: Sequence[float]) -> Factors:
    """`sum_i w_i b_i @ a_i` as one pair of factors, its rank the sum of theirs; ranks may differ."""
    columns = [w * f.b for f, w in zip(factors, weights, strict=True)]
    return Factors(torch.cat([f.a for f in factors], -2), torch.cat(columns, -1))


@torch.no_grad()
def compress(factors: Factors) -> Factors:
    """The same product of rank at most `min(d_in, d_out)`; factors that are no larger come back as they are."""
    bound = min(factors.d_in, factors.d_out)
    if factors.rank <= bound:
        return factors
    near = truncate(factors.a, factors.b, bound)
    return Factors(near.a, near.b)


@torch.no_grad()
def norm(a: Tensor, b: Tensor) -> Tensor:
    """`||b @ a||_F`, `(...)`, from two Gram matrices, or from the product where that is the smaller thing.

    Accurate to rounding unless the columns' contributions cancel; then `distance` is (thin QR).

    >>> norm(torch.eye(2, 3), torch.full((4, 2), 2.0))
    tensor(5.6569)
    """
    (like,) = widen(b[..., :0])
    with full_precision(a.device):
        a, b = a.double(), b.double()
        if pays(a.shape[-2], a.shape[-1], b.shape[-2]):
            return linalg.frobenius(b @ a).to(like.dtype)
        return ((a @ a.mT) * (b.mT @ b)).sum((-2, -1)).clamp(min=0).sqrt().to(like.dtype)


@torch.no_grad()
def distance(a: Tensor, b: Tensor, a_other: Tensor, b_other: Tensor) -> Tensor:
    """`||b @ a - b_other @ a_other||_F`, `(...)`, by thin QR: accurate even when the two nearly agree.

    Args:
        a: `(..., k, d_in)`.
        b: `(..., d_out, k)`.
        a_other: `(..., l, d_in)`.
        b_other: `(..., d_out, l)`.
    """
    (like,) = widen(b[..., :0])
    with full_precision(a.device):
        rows = torch.cat([a.double(), a_other.double()], -2)
        columns = torch.cat([b.double(), -b_other.double()], -1)
        _, right = linalg.qr(rows.mT)
        _, left = linalg.qr(columns)
        return linalg.frobenius(left @ right.mT).to(like.dtype)


@torch.no_grad()
def truncate(a: Tensor, b: Tensor, rank: int) -> Truncated:
    """The best approximation of `b @ a` of rank `rank`, split evenly: `b = U sqrt(S)`, `a = sqrt(S) V.T`.

    Two thin QR factorisations and the SVD of their small core. Zero directions fill up a `rank` that exceeds
    what there is.

    >>> a, b, s = truncate(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.eye(2), rank=1)
    >>> (b @ a).round(decimals=4) + 0.0, s
    (tensor([[3., 0.],
            [0., 0.]]), tensor([3., 1.]))

    Args:
        a: `(..., k, d_in)`.
        b: `(..., d_out, k)`.
        rank: of the result, at least 1.

    Returns:
        Factors `(..., rank, d_in)` and `(..., d_out, rank)`, and `min(k, d_in, d_out)` singular values.
    """
    a, b = widen(a, b)
    u, s, vh = product_svd(a.double(), b.double())
    root = s[..., :rank].sqrt()
    near_a = root[..., None] * vh[..., :rank, :]
    near_b = u[..., :rank] * root[..., None, :]
    extra = max(0, rank - s.shape[-1])
    near_a = torch.nn.functional.pad(near_a, (0, 0, 0, extra))
    near_b = torch.nn.functional.pad(near_b, (0, extra))
    return Truncated(near_a.to(a.dtype), near_b.to(a.dtype), s.to(a.dtype))


@torch.no_grad()
def product_svd(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Thin `U, s, V.T` of `b @ a`, from two thin QR factorisations and the SVD of their small core.

    Args:
        a: `(..., k, d_in)`.
        b: `(..., d_out, k)`.

    Returns:
        `(..., d_out, n)`, `(..., n)` descending and `(..., n, d_in)` with `n = min(k, d_in, d_out)`, in float64.
    """
    with full_precision(a.device):
        right, r_right = linalg.qr(a.double().mT)
        left, r_left = linalg.qr(b.double())
        u, s, vh = linalg.svd(r_left @ r_right.mT)
        return left @ u, s, vh @ right.mT
