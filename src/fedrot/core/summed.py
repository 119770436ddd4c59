"""Sums of very many clients' products: beyond the width of the layer their matrix is smaller than their stack."""

from __future__ import annotations

import torch
from torch import Tensor

from fedrot.core import linalg

COLUMNS = 4096
"""Stacked rank that is held in float64 at a time."""


def pays(stacked_rank: int, d_in: int, d_out: int) -> bool:
    """Whether forming the `d_out x d_in` sum costs less than Gram matrices of the stack, both in float64.

    That is `2 k d_in d_out` against `k^2 (d_in + d_out) / 2` operations, the Gram matrices being symmetric.
    """
    return stacked_rank * (d_in + d_out) > 4 * d_in * d_out


def summed_norms(a: Tensor, b: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """`||E||_F` and `||W||_F` for `E = sum p_i (b_i - mean(b)) (a_i - mean(a))` and `W = E + mean(b) mean(a)`.

    `E` itself is summed in float64, some clients at a time: the time grows with the clients and not with their square,
    and memory beyond the clients' own does not grow.

    Args:
        a: `(N, ..., r, d_in)`.
        b: `(N, ..., d_out, r)`.
        shares: `(N,)` in float64, adding up to one.

    Returns:
        Two float64 tensors `(...)`.
    """
    step = max(1, COLUMNS // a.shape[-2])
    a_mean, b_mean = (_mean(t, shares, step) for t in (a, b))
    total = b.new_zeros(*b.shape[1:-1], a.shape[-1], dtype=torch.float64)
    for start in range(0, len(a), step):
        block = slice(start, start + step)
        rows = (a[block].double() - a_mean).movedim(0, -3).flatten(-3, -2)
        weighted = (b[block].double() - b_mean) * shares[block].view(-1, *[1] * (b.ndim - 1))
        total += weighted.movedim(0, -2).flatten(-2, -1) @ rows
    return linalg.frobenius(total), linalg.frobenius(total + b_mean @ a_mean)


def _mean(t: Tensor, shares: Tensor, step: int) -> Tensor:
    """`sum p_i t_i` in float64."""
    total = t.new_zeros(t.shape[1:], dtype=torch.float64)
    for start in range(0, len(t), step):
        block = slice(start, start + step)
        total += torch.einsum("n,n...->...", shares[block], t[block].double())
    return total
